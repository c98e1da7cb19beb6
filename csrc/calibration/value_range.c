/* The value range of activations, from one streaming pass. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "calibration/value_range.h"
#include "kernels/kernels.h"

enum { FINEST = -120 }; /* the least exponent of a bin width: its inverse stays finite */

qk_value_range *qk_value_range_new(int bins) {
    if (bins < 2 || bins % 2) return NULL;
    qk_value_range *r = QK_NEW(qk_value_range, 1);
    if (!r) return NULL;
    r->bins = bins;
    r->lo = INFINITY;
    r->hi = -INFINITY;
    r->exponent = FINEST;
    r->counts = QK_NEW(uint64_t, 2 * (int64_t)bins);
    if (!r->counts) {
        free(r);
        return NULL;
    }
    return r;
}

void qk_value_range_free(qk_value_range *r) {
    if (!r) return;
    free(r->counts);
    free(r);
}

float qk_value_range_min(const qk_value_range *r) { return r->count ? r->lo : 0; }
float qk_value_range_max(const qk_value_range *r) { return r->count ? r->hi : 0; }
uint64_t qk_value_range_count(const qk_value_range *r) { return r->count; }

/* Doubles the bin width until `largest` fits: pairs of bins merge. */
static void widen(qk_value_range *r, float largest) {
    int exponent = 0;
    if (largest == 0) return;                    /* zeros are in bin 0 whatever the width */
    frexp((double)largest / r->bins, &exponent); /* largest / bins < 2^exponent */
    if (exponent < FINEST) exponent = FINEST;
    if (!r->has_width) {
        r->exponent = exponent;
        r->has_width = true;
        return;
    }
    for (; r->exponent < exponent; r->exponent++)
        for (uint64_t *counts = r->counts; counts <= r->counts + r->bins; counts += r->bins) {
            for (int i = 0; i < r->bins / 2; i++) counts[i] = counts[2 * i] + counts[2 * i + 1];
            memset(counts + r->bins / 2, 0, (size_t)(r->bins / 2) * sizeof *counts);
        }
}

float qk_value_range_percentile(const qk_value_range *r, double percentile) {
    const double wanted = percentile / 100 * (double)r->count;
    uint64_t seen = 0;
    for (int i = 0; i < r->bins; i++) {
        seen += r->counts[i] + r->counts[r->bins + i];
        if ((double)seen >= wanted) return ldexpf((float)(i + 1), r->exponent);
    }
    return ldexpf((float)r->bins, r->exponent);
}

double qk_value_range_histogram(const qk_value_range *r, uint64_t *counts) {
    for (int i = 0; i < 2 * r->bins; i++) counts[i] = qk_value_range_in(r, i - r->bins);
    return ldexp(1, r->exponent);
}

/* ---- updating many ranges at once ------------------------------------------------------------ */

enum { PIECE = 1 << 15 }; /* values per task; half of them fit into a count */

typedef struct {
    qk_value_range *range;
    const float *x;
    size_t n;
    float lo, hi;
    bool finite;
    uint16_t *counts; /* (2, 2 bins) of this piece: every other value apart, as one bin twice in a row stalls */
} piece;

static void scan_task(void *context, int64_t task, int worker) {
    (void)worker;
    piece *p = (piece *)context + task;
    p->lo = INFINITY;
    p->hi = -INFINITY;
    p->finite = qk_kernels_get()->min_max(p->x, p->n, &p->lo, &p->hi);
}

static void count_task(void *context, int64_t task, int worker) {
    (void)worker;
    enum { CHUNK = 1024 };
    piece *p = (piece *)context + task;
    const float inverse_width = ldexpf(1.0f, -p->range->exponent);
    const uint32_t last = (uint32_t)p->range->bins - 1;
    uint16_t *even = p->counts, *odd = p->counts + 2 * p->range->bins;
    uint32_t index[CHUNK];
    for (size_t i = 0; i < p->n; i += CHUNK) {
        const size_t n = p->n - i < CHUNK ? p->n - i : CHUNK;
        qk_kernels_get()->bin_indices(index, p->x + i, n, inverse_width, last);
        for (size_t j = 0; j + 1 < n; j += 2) {
            even[index[j]]++;
            odd[index[j + 1]]++;
        }
        if (n % 2) even[index[n - 1]]++;
    }
}

/* Adds the counts of a piece to its range. */
static void add_counts(const piece *p) {
    const int bins = p->lo < 0 ? 2 * p->range->bins : p->range->bins; /* of both signs, or without the negative ones */
    const uint16_t *even = p->counts, *odd = p->counts + 2 * p->range->bins;
    for (int i = 0; i < bins; i++) p->range->counts[i] += (uint64_t)even[i] + odd[i];
}

static qk_status update_in_pieces(qk_value_range *const *ranges, const float *const *x, const size_t *n, size_t count,
                                  qk_pool *pool, size_t *bad) {
    int64_t pieces = 0, counts = 0;
    for (size_t i = 0; i < count; i++) {
        const int64_t m = (int64_t)((n[i] + PIECE - 1) / PIECE);
        pieces += m;
        counts += m * 4 * ranges[i]->bins;
    }
    piece *all = QK_NEW(piece, pieces);
    uint16_t *memory = QK_NEW(uint16_t, counts);
    qk_status status = all && memory ? QK_OK : QK_E_NOMEM;
    if (status == QK_OK) {
        piece *p = all;
        uint16_t *c = memory;
        for (size_t i = 0; i < count; i++)
            for (size_t at = 0; at < n[i]; at += PIECE, p++, c += 4 * ranges[i]->bins)
                *p = (piece){
                    .range = ranges[i], .x = x[i] + at, .counts = c, .n = n[i] - at < PIECE ? n[i] - at : PIECE};
        qk_pool_run(pool, scan_task, all, pieces);
        p = all;
        for (size_t i = 0; i < count && status == QK_OK; i++) {
            float lo = INFINITY, hi = -INFINITY;
            for (size_t at = 0; at < n[i]; at += PIECE, p++) {
                if (!p->finite && status == QK_OK) {
                    status = QK_E_NONFINITE;
                    *bad = i;
                }
                lo = fminf(lo, p->lo);
                hi = fmaxf(hi, p->hi);
            }
            if (n[i] == 0 || status != QK_OK) continue;
            ranges[i]->lo = fminf(ranges[i]->lo, lo);
            ranges[i]->hi = fmaxf(ranges[i]->hi, hi);
            ranges[i]->count += n[i];
            widen(ranges[i], fmaxf(-lo, hi));
        }
    }
    if (status == QK_OK) {
        qk_pool_run(pool, count_task, all, pieces);
        for (int64_t t = 0; t < pieces; t++) add_counts(all + t);
    }
    free(all);
    free(memory);
    return status;
}

qk_status qk_value_ranges_update(qk_value_range *const *ranges, const float *const *x, const size_t *n, size_t count,
                                 qk_pool *pool, size_t *bad) {
    *bad = 0;
    return update_in_pieces(ranges, x, n, count, pool, bad);
}
