/* The value range of activations, from one streaming pass. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "calibration/value_range.h"
#include "kernels/kernels.h"

enum { FINEST = -120 }; /* the least exponent of a bin width: its inverse stays finite */

qk_value_range *qk_value_range_new(int bins) {
    if (bins < 2 || bins % 2 || bins > QK_MOST_BINS) return NULL;
    qk_value_range *r = QK_NEW(qk_value_range, 1);
    if (!r) return NULL;
    r->bins = bins;
    r->lo = INFINITY;
    r->hi = -INFINITY;
    r->exponent = FINEST;
    r->counts = QK_NEW(uint64_t, 2, bins);
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

/* Doubles the bin width until it is 2^exponent: pairs of bins merge. */
static void widen(qk_value_range *r, int exponent) {
    if (!r->has_width) {
        r->exponent = exponent;
        r->has_width = true;
    }
    for (; r->exponent < exponent; r->exponent++)
        for (uint64_t *counts = r->counts; counts <= r->counts + r->bins; counts += r->bins) {
            for (int i = 0; i < r->bins / 2; i++) counts[i] = counts[2 * i] + counts[2 * i + 1];
            memset(counts + r->bins / 2, 0, (size_t)(r->bins / 2) * sizeof *counts);
        }
}

/* Makes the bins reach as far as `largest`. */
static void fit(qk_value_range *r, float largest) {
    int exponent = 0;
    if (largest == 0) return;                    /* zeros are in bin 0 whatever the width */
    frexp((double)largest / r->bins, &exponent); /* largest / bins < 2^exponent */
    widen(r, exponent < FINEST ? FINEST : exponent);
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

/* ---- updating -------------------------------------------------------------------------------- */

enum {
    CHUNK = 4096,                    /* values that stay in a near cache from one loop to the next */
    FLUSHED = UINT16_MAX / CHUNK * 2 /* chunks until a recent count may be full, each value being in one of two */
};

/* Counts of the last chunks, of every other value: as the kernel's indices say, those of bin 0 first. */
static int64_t recent_size(int bins) { return 2 * (int64_t)bins + QK_ZERO_TURNS - 1; }

/* Adds the counts of the last chunks to the range and clears them. */
static void flush(qk_value_range *r, uint16_t *recent) {
    const int64_t bins = r->lo < 0 ? 2 * r->bins : r->bins; /* of both signs, or without the negative ones */
    uint16_t *even = recent, *odd = recent + recent_size(r->bins);
    for (int64_t i = 0; i < QK_ZERO_TURNS; i++) r->counts[0] += even[i] + odd[i];
    qk_kernels_get()->add_counts(r->counts + 1, even + QK_ZERO_TURNS, odd + QK_ZERO_TURNS, (size_t)bins - 1);
    memset(even, 0, (size_t)(bins + QK_ZERO_TURNS - 1) * sizeof *even);
    memset(odd, 0, (size_t)(bins + QK_ZERO_TURNS - 1) * sizeof *odd);
}

/* Every other value is counted apart, as one bin twice in a row would stall. */
static void count_chunk(qk_value_range *r, const float *x, size_t n, uint16_t *recent) {
    uint32_t index[CHUNK];
    uint16_t *even = recent, *odd = recent + recent_size(r->bins);
    qk_kernels_get()->bin_indices(index, x, n, ldexpf(1.0f, -r->exponent), (uint32_t)r->bins - 1);
    const size_t kept = qk_kernels_get()->drop_zeros(index, n);
    r->counts[0] += n - kept;
    for (size_t i = 0; i + 1 < kept; i += 2) {
        even[index[i]]++;
        odd[index[i + 1]]++;
    }
    if (kept % 2) even[index[kept - 1]]++;
}

/* recent: (2, recent_size) zeros, before and after. */
static qk_status update(qk_value_range *r, const float *x, size_t n, uint16_t *recent) {
    size_t chunks = 0;
    for (size_t i = 0; i < n; i += CHUNK, chunks++) {
        const size_t m = n - i < CHUNK ? n - i : CHUNK;
        float lo = r->lo, hi = r->hi;
        if (!qk_kernels_get()->min_max(x + i, m, &lo, &hi)) return QK_E_NONFINITE;
        if (lo < r->lo || hi > r->hi || chunks == FLUSHED) {
            flush(r, recent);
            chunks = 0;
            r->lo = lo;
            r->hi = hi;
            fit(r, fmaxf(-lo, hi));
        }
        count_chunk(r, x + i, m, recent);
        r->count += m;
    }
    flush(r, recent);
    return QK_OK;
}

qk_status qk_value_ranges_update(qk_value_range *const *ranges, const float *const *x, const size_t *n, size_t count,
                                 size_t *bad) {
    int most_bins = 0;
    for (size_t i = 0; i < count; i++) most_bins = ranges[i]->bins > most_bins ? ranges[i]->bins : most_bins;
    uint16_t *recent = QK_NEW(uint16_t, 2, recent_size(most_bins));
    qk_status status = recent ? QK_OK : QK_E_NOMEM;
    for (size_t i = 0; i < count && status == QK_OK; i++) {
        status = update(ranges[i], x[i], n[i], recent);
        *bad = i;
    }
    free(recent);
    return status;
}

void qk_value_range_add(qk_value_range *r, const qk_value_range *other) {
    if (other->has_width) widen(r, other->exponent);
    /* without a width there are but zeros, in bin 0 whatever the width */
    const int shift = r->exponent - other->exponent < 31 ? r->exponent - other->exponent : 31;
    for (int i = 0; i < r->bins; i++) {
        r->counts[i >> shift] += other->counts[i];
        r->counts[r->bins + (i >> shift)] += other->counts[r->bins + i];
    }
    r->lo = fminf(r->lo, other->lo);
    r->hi = fmaxf(r->hi, other->hi);
    r->count += other->count;
}
