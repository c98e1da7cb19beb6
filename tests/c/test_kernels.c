/* The scalar table against obvious loops; every other table against the scalar one, bit for bit. */
#define _POSIX_C_SOURCE 200809L
#include <sys/wait.h>
#include <unistd.h>

#include "qk_test.h"
#include "tables.h"

enum { TAILS = 131, SHIFTS = 3 }; /* lengths 0 .. 130, at aligned and unaligned addresses */

/* Runs check(table, n, shift) for every table, tail and shift; the scalar table first. */
static void for_every_tail(void (*check)(const qk_kernels *, size_t, size_t)) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (size_t n = 0; n < TAILS; n++)
        for (size_t shift = 0; shift < SHIFTS; shift++)
            for (int t = 0; t < count; t++) check(tables[t], n, shift);
}

static float *values(size_t n, uint64_t seed, float limit) {
    qk_random r = {seed};
    return qk_floats(&r, (int64_t)n, -limit, limit);
}

/* ---- fake_quant ------------------------------------------------------------------------------ */

static float quantize_dequantize(float x, qk_affine a, qk_grid g) {
    double q = nearbyint((double)(x / a.scale)) + a.zero_point; /* the rounding mode's default: half to even */
    if (q < g.qmin) q = g.qmin;
    if (q > g.qmax) q = g.qmax;
    return (float)(q - a.zero_point) * a.scale;
}

static void check_fake_quant(const qk_kernels *k, size_t n, size_t shift) {
    const qk_affine affine[] = {{0.037f, 121}, {0.5f, 0}, {1.3f, -128}};
    const qk_grid grid[] = {{0, 255, false}, {-127, 127, true}, {-128, 127, false}};
    float *x = values(n + shift, n, 60), y[TAILS + SHIFTS];
    for (int i = 0; i < 3; i++) {
        for (size_t j = 0; j < n; j += 2) x[shift + j] = ((float)j - 64.5f) * affine[i].scale; /* near a tie */
        if (n > 1) x[shift + 1] = i == 1 ? -1e30f : 1e30f;
        k->fake_quant(y + shift, x + shift, n, affine[i], grid[i]);
        for (size_t j = 0; j < n; j++) CHECK(y[shift + j] == quantize_dequantize(x[shift + j], affine[i], grid[i]));
    }
    free(x);
}

static void fake_quant_is_quantize_then_dequantize(void) { for_every_tail(check_fake_quant); }

/* ---- dequantize ------------------------------------------------------------------------------ */

static void check_dequantize(const qk_kernels *k, size_t n, size_t shift) {
    const qk_affine affine = {0.021f, 117};
    uint8_t u[TAILS + SHIFTS];
    int8_t s[TAILS + SHIFTS];
    float from_u[TAILS], from_s[TAILS];
    for (size_t i = 0; i < n + shift; i++) u[i] = (uint8_t)(i * 37 + n), s[i] = (int8_t)u[i];
    k->dequantize_u8(from_u, u + shift, n, affine);
    k->dequantize_i8(from_s, s + shift, n, affine);
    for (size_t i = 0; i < n; i++) {
        CHECK(from_u[i] == (float)(u[shift + i] - 117) * 0.021f);
        CHECK(from_s[i] == (float)(s[shift + i] - 117) * 0.021f);
    }
}

static void dequantize_subtracts_then_scales(void) { for_every_tail(check_dequantize); }

/* ---- gather ---------------------------------------------------------------------------------- */

static void check_gather(const qk_kernels *k, size_t n, size_t shift) {
    enum { SOURCE = 300 };
    qk_random r = {n + 23};
    float *x = values(SOURCE, n + 29, 5), *table = values(256, n + 31, 5), floats[TAILS + SHIFTS + 1];
    float bytes[TAILS + SHIFTS + 1];
    uint8_t b[SOURCE];
    int32_t index[TAILS + SHIFTS];
    for (size_t i = 0; i < SOURCE; i++) b[i] = (uint8_t)(i * 37 + n);
    for (size_t i = 0; i < n + shift; i++) index[i] = (int32_t)qk_random_below(&r, SOURCE); /* any order, some twice */
    if (n > 0) index[shift] = SOURCE - 1, index[shift + n - 1] = 0;
    for (size_t i = 0; i < n + shift + 1; i++) floats[i] = bytes[i] = -77;
    k->gather_f32(floats + shift, x, index + shift, n);
    k->gather_bytes(bytes + shift, b, index + shift, n, table);
    for (size_t i = 0; i < n + shift + 1; i++) {
        const bool inside = i >= shift && i < shift + n;
        CHECK(floats[i] == (inside ? x[index[i]] : -77));
        CHECK(bytes[i] == (inside ? table[b[index[i]]] : -77));
    }
    free(table);
    free(x);
}

static void gathers_take_what_the_index_names(void) { for_every_tail(check_gather); }

/* ---- min_max, bin_indices, drop_zeros, add_counts -------------------------------------------- */

static void check_min_max(const qk_kernels *k, size_t n, size_t shift) {
    float *x = values(n + shift, n + 7, 5), lo = 0.5f, hi = 0.75f, expected_lo = lo, expected_hi = hi;
    for (size_t i = shift; i < shift + n; i++) {
        expected_lo = fminf(expected_lo, x[i]);
        expected_hi = fmaxf(expected_hi, x[i]);
    }
    CHECK(k->min_max(x + shift, n, &lo, &hi));
    CHECK(lo == expected_lo && hi == expected_hi);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < n; i++) {
        const float kept = x[shift + i];
        x[shift + i] = bad[i % 3];
        CHECK(!k->min_max(x + shift, n, &lo, &hi));
        x[shift + i] = kept;
    }
    free(x);
}

static void min_max_widens_and_finds_every_nan(void) { for_every_tail(check_min_max); }

static void check_bin_indices(const qk_kernels *k, size_t n, size_t shift) {
    const uint32_t last = 15;
    float *x = values(n + shift, n + 9, 9);
    uint32_t index[TAILS + SHIFTS];
    k->bin_indices(index + shift, x + shift, n, 2.0f, last);
    for (size_t i = shift; i < shift + n; i++) {
        const uint32_t floor_of = (uint32_t)floor(fabs((double)x[i]) * 2), bin = floor_of < last ? floor_of : last;
        const uint32_t turn = (uint32_t)(i - shift) % QK_ZERO_TURNS, others = QK_ZERO_TURNS - 1;
        CHECK(index[i] == (x[i] < 0 ? others + last + 1 + bin : bin > 0 ? others + bin : turn));
    }
    free(x);
}

static void bin_indices_are_floors(void) { for_every_tail(check_bin_indices); }

static void check_drop_zeros(const qk_kernels *k, size_t n, size_t shift) {
    uint32_t index[TAILS + SHIFTS], others[TAILS + SHIFTS];
    size_t expected = 0, found = 0;
    for (size_t i = 0; i < n; i++) {
        index[shift + i] = i % 3 == shift % 3 ? (uint32_t)i % QK_ZERO_TURNS : QK_ZERO_TURNS + (uint32_t)(i * i);
        if (index[shift + i] >= QK_ZERO_TURNS) others[expected++] = index[shift + i];
    }
    const size_t kept = k->drop_zeros(index + shift, n);
    CHECK(kept <= n);
    for (size_t i = shift; i < shift + kept; i++)
        if (index[i] >= QK_ZERO_TURNS) CHECK(found < expected && index[i] == others[found++]);
    CHECK(found == expected);
}

static void drop_zeros_keeps_all_others(void) { for_every_tail(check_drop_zeros); }

static void check_add_counts(const qk_kernels *k, size_t n, size_t shift) {
    uint64_t to[TAILS + SHIFTS] = {0};
    uint16_t a[TAILS + SHIFTS] = {0}, b[TAILS + SHIFTS] = {0};
    for (size_t i = 0; i < n + shift; i++) {
        to[i] = UINT32_MAX - i;
        a[i] = UINT16_MAX;
        b[i] = (uint16_t)(UINT16_MAX - i);
    }
    k->add_counts(to + shift, a + shift, b + shift, n);
    for (size_t i = 0; i < n + shift; i++)
        CHECK(to[i] == UINT32_MAX - i + (i < shift ? 0 : 2 * (uint64_t)UINT16_MAX - i));
}

static void add_counts_adds_two_full_counts(void) { for_every_tail(check_add_counts); }

/* ---- sums ------------------------------------------------------------------------------------ */

/* The value of the scalar table for the same data, which others must repeat bit for bit. */
static void check_sum(double got, double scalar, double exact, double magnitude) {
    CHECK(fabs(got - exact) <= 1e-6 * magnitude);
    CHECK_SAME(&got, &scalar, 1);
}

static void check_sums(const qk_kernels *k, size_t n, size_t shift) {
    const qk_kernels *scalar = &qk_kernels_scalar;
    float *x = values(n + shift, n + 11, 3);
    double sum = 0, squares = 0;
    for (size_t i = shift; i < shift + n; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    check_sum(k->sum(x + shift, n), scalar->sum(x + shift, n), sum, 3.0 * (double)n);
    check_sum(k->sum_squares(x + shift, n), scalar->sum_squares(x + shift, n), squares, 9.0 * (double)n);
    free(x);
}

static void sums_are_sums(void) { for_every_tail(check_sums); }

static void check_doubles(const qk_kernels *k, size_t n, size_t shift) {
    qk_random r = {n + 13};
    double x[TAILS + SHIFTS], y[TAILS + SHIFTS], expected[TAILS + SHIFTS], exact = 0;
    for (size_t i = 0; i < n + shift; i++) {
        x[i] = qk_uniform(&r, -2, 2);
        y[i] = qk_uniform(&r, -2, 2);
        expected[i] = i < shift ? y[i] : y[i] + 0.7 * x[i];
        if (i >= shift) exact += x[i] * y[i];
    }
    const double got = k->dot(x + shift, y + shift, n), scalar = qk_kernels_scalar.dot(x + shift, y + shift, n);
    CHECK(fabs(got - exact) <= 1e-14 * 4 * (double)n);
    CHECK_SAME(&got, &scalar, 1);
    k->axpy(y + shift, 0.7, x + shift, n);
    CHECK_SAME(y, expected, n + shift);
}

static void dot_and_axpy_in_float64(void) { for_every_tail(check_doubles); }

static void check_dot_f32(const qk_kernels *k, size_t n, size_t shift) {
    float *x = values(n + shift, n + 37, 2), *y = values(n + shift, n + 41, 2);
    double exact = 0;
    for (size_t i = shift; i < shift + n; i++) exact += (double)x[i] * y[i];
    check_sum(k->dot_f32(x + shift, y + shift, n), qk_kernels_scalar.dot_f32(x + shift, y + shift, n), exact,
              4.0 * (double)n);
    free(x);
    free(y);
}

static void dot_f32_is_a_sum_of_products(void) { for_every_tail(check_dot_f32); }

/* ---- gram_panel ------------------------------------------------------------------------------ */

static void check_gram_panel(const qk_kernels *k, size_t n, size_t shift) {
    enum { MAX_K = 9, STRIDE = TAILS + SHIFTS };
    float *panel = values(MAX_K * STRIDE, n + 17, 2), *y = values(STRIDE, n + 19, 2);
    for (int64_t rows = 1; rows <= MAX_K; rows += 1 + (n % 16 != 3)) { /* every size only for some lengths */
        double gram[MAX_K * MAX_K], cross[MAX_K], scalar_gram[MAX_K * MAX_K], scalar_cross[MAX_K];
        for (int i = 0; i < MAX_K * MAX_K; i++) gram[i] = scalar_gram[i] = 1;
        for (int i = 0; i < MAX_K; i++) cross[i] = scalar_cross[i] = 2;
        k->gram_panel(gram, cross, panel + shift, y + shift, rows, STRIDE, n);
        qk_kernels_scalar.gram_panel(scalar_gram, scalar_cross, panel + shift, y + shift, rows, STRIDE, n);
        for (int64_t i = 0; i < rows; i++) {
            double c = 2;
            for (size_t t = shift; t < shift + n; t++) c += (double)panel[i * STRIDE + (int64_t)t] * y[t];
            CHECK(fabs(cross[i] - c) <= 1e-6 * 4 * (double)(n + 1));
            for (int64_t j = 0; j < rows; j++) {
                double g = 1;
                for (size_t t = shift; t < shift + n; t++)
                    g += (double)panel[i * STRIDE + (int64_t)t] * panel[j * STRIDE + (int64_t)t];
                CHECK(fabs(gram[i * rows + j] - g) <= 1e-6 * 4 * (double)(n + 1));
            }
        }
        CHECK_SAME(gram, scalar_gram, rows * rows);
        CHECK_SAME(cross, scalar_cross, rows);
        k->gram_panel(gram, NULL, panel, NULL, rows, STRIDE, n); /* without target */
    }
    free(panel);
    free(y);
}

static void gram_panel_adds_both_triangles(void) { for_every_tail(check_gram_panel); }

/* ---- lanes ----------------------------------------------------------------------------------- */

enum { LINES = 71, LD = LINES + 4, GUARDED = (LINES + 1) * QK_LANES + SHIFTS }; /* 0 .. 70 lines, and one beyond */

/* Runs check(table, n, shift) for every table and n = 0 .. 70 lines. */
static void for_every_line_count(void (*check)(const qk_kernels *, size_t, size_t)) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (size_t n = 0; n < LINES; n++)
        for (int t = 0; t < count; t++) check(tables[t], n, n % SHIFTS);
}

enum { SCALE_BLOCK = 3, FIRST = 7 }; /* of lanes with an odd shift, which have more than one scale */

/* Random lanes; arrays (LINES + 1, QK_LANES) from `shift` on. square (n, LD) has NaN wherever nothing may be read. */
typedef struct {
    qk_lanes lanes;
    size_t shift;
    float *scale, *zp, *lo, *hi, *q, *square, *sums, *target, *steps;
} lane_data;

static lane_data lane_data_new(size_t n, size_t shift, bool triangular) {
    qk_random r = {n + 59};
    lane_data d = {.shift = shift,
                   .scale = qk_floats(&r, (LINES + FIRST) * QK_LANES, 0.05f, 0.2f),
                   .zp = MEMORY(float, (LINES + FIRST) * QK_LANES),
                   .lo = MEMORY(float, GUARDED),
                   .hi = MEMORY(float, GUARDED),
                   .q = MEMORY(float, GUARDED),
                   .square = qk_floats(&r, LINES * LD, -0.3f, 0.3f),
                   .sums = qk_floats(&r, GUARDED, -1, 1),
                   .target = qk_floats(&r, GUARDED, -1, 1),
                   .steps = MEMORY(float, GUARDED)};
    for (int i = 0; i < (LINES + FIRST) * QK_LANES; i++) d.zp[i] = (float)qk_random_below(&r, 9) - 4;
    for (size_t i = 0; i < GUARDED; i++) {
        d.lo[i] = -1 - (float)qk_random_below(&r, 5);
        d.hi[i] = d.lo[i] + (float)qk_random_below(&r, 9);
        d.q[i] = d.lo[i];
        d.steps[i] = -77;
    }
    for (size_t i = 0; i < LINES; i++)
        for (size_t j = 0; j < LD; j++) {
            if (i == j) d.square[i * LD + j] = (float)qk_uniform(&r, 0.5, 1);
            if (j >= n || (triangular && j > i)) d.square[i * LD + j] = NAN;
        }
    d.lanes = (qk_lanes){d.scale, d.zp, d.lo + shift, d.hi + shift, d.q + shift, shift % 2 ? SCALE_BLOCK : 0, FIRST};
    return d;
}

static void lane_data_free(lane_data *d) {
    void *arrays[] = {d->scale, d->zp, d->lo, d->hi, d->q, d->square, d->sums, d->target, d->steps};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* What a kernel wrote, and nothing beyond it. */
static void check_same_lanes(const lane_data *a, const lane_data *b) {
    CHECK_SAME(a->q, b->q, GUARDED);
    CHECK_SAME(a->sums, b->sums, GUARDED);
    CHECK_SAME(a->steps, b->steps, GUARDED);
}

static void check_equal_lanes(const lane_data *a, const lane_data *b) { /* 0 may be -0 */
    for (size_t i = 0; i < GUARDED; i++) {
        CHECK(a->q[i] == b->q[i]);
        CHECK(a->sums[i] == b->sums[i]);
        CHECK(a->steps[i] == b->steps[i]);
    }
}

static float clipped(float q, float lo, float hi) { return fminf(fmaxf(q, lo), hi); }

/* Where the scale and zero point of a line stand. */
static size_t scale_at(const lane_data *d, size_t lane, size_t k) {
    return (d->shift % 2 ? (FIRST + k) / SCALE_BLOCK * QK_LANES : 0) + lane;
}

/* ---- one output ------------------------------------------------------------------------------ */

/* Random arrays of one output, from `shift` on; gram (n, LD) has NaN wherever nothing may be read. */
typedef struct {
    float *scale, *curvature, *lo, *hi, *q, *residual, *gram, *step;
    int32_t which[LINES];
} line_data;

static line_data line_data_new(size_t n, size_t shift) {
    qk_random r = {n + 67};
    line_data d = {.scale = qk_floats(&r, LD, 0.05f, 0.2f),
                   .curvature = MEMORY(float, LD),
                   .lo = MEMORY(float, LD),
                   .hi = MEMORY(float, LD),
                   .q = MEMORY(float, LD),
                   .residual = qk_floats(&r, LD, -1, 1),
                   .gram = qk_floats(&r, LINES * LD, -0.3f, 0.3f),
                   .step = MEMORY(float, LD)};
    const float none[] = {0, -1, NAN}; /* inputs that are always zero; q is out of their ranges */
    for (size_t i = 0; i < LD; i++) {
        d.lo[i] = -1 - (float)qk_random_below(&r, 5);
        d.hi[i] = i % 11 == 5 ? d.lo[i] : d.lo[i] + (float)qk_random_below(&r, 9);
        d.q[i] = i >= shift && (i - shift) % 7 == 3 ? 99 : d.lo[i];
        d.step[i] = -77;
    }
    for (size_t i = 0; i < LINES; i++)
        for (size_t j = 0; j < LD; j++) {
            if (i == j) d.gram[i * LD + j] = i % 7 == 3 ? none[i % 3] : (float)qk_uniform(&r, 0.5, 1);
            if (j >= n) d.gram[i * LD + j] = NAN;
        }
    for (size_t i = 0; i < n; i++) d.curvature[shift + i] = d.gram[i * LD + i];
    return d;
}

static void line_data_free(line_data *d) {
    void *arrays[] = {d->scale, d->curvature, d->lo, d->hi, d->q, d->residual, d->gram, d->step};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static int32_t descend_one(const qk_kernels *k, line_data *d, size_t n, size_t shift) {
    const qk_line line = {d->scale + shift, d->curvature + shift, d->lo + shift,
                          d->hi + shift,    d->q + shift,         d->residual + shift};
    return k->descend_line(&line, d->gram, LD, d->which, d->step + shift, n);
}

/* One input after the other, in float32 as the kernel. */
static int32_t descend_slowly(line_data *d, size_t n, size_t shift) {
    int32_t count = 0;
    for (size_t k = 0; k < n; k++) {
        const size_t at = shift + k;
        const float before = d->q[at];
        if (!(d->curvature[at] > 0)) continue;
        const float step_down = d->residual[at] / (d->scale[at] * d->curvature[at]);
        const float to = clipped(rintf(before - step_down), d->lo[at], d->hi[at]);
        if (to == before) continue;
        d->q[at] = to;
        const float step = d->scale[at] * (to - before);
        for (size_t i = 0; i < n; i++) d->residual[shift + i] += d->gram[k * LD + i] * step;
        d->which[count] = (int32_t)k;
        d->step[shift + (size_t)count++] = step;
    }
    return count;
}

static void check_descend_line(const qk_kernels *k, size_t n, size_t shift) {
    line_data got = line_data_new(n, shift), slow = line_data_new(n, shift);
    for (int sweep = 0; sweep < 3; sweep++) {
        const int32_t count = descend_one(k, &got, n, shift);
        CHECK(count == descend_slowly(&slow, n, shift));
        CHECK(count <= (int32_t)n && (sweep > 0 || n < 16 || count > 0));
        CHECK_SAME(got.which, slow.which, count);
        CHECK_SAME(got.q, slow.q, LD);
        CHECK_SAME(got.residual, slow.residual, LD);
        CHECK_SAME(got.step, slow.step, LD);
    }
    line_data_free(&slow);
    line_data_free(&got);
}

static void descend_line_minimises_input_by_input(void) { for_every_line_count(check_descend_line); }

static void check_add_lines(const qk_kernels *k, size_t n, size_t shift) {
    enum { MOST = 11, ROWS = 20 };
    float *to = values(LD, n + 71, 1), *before = values(LD, n + 71, 1), *lines = values(ROWS * LD, n + 73, 1);
    float *scalar = values(LD, n + 71, 1), *step = values(MOST, n + 79, 1);
    const int32_t which[MOST] = {0, 3, 4, 7, 7, 8, 11, 12, 15, 18, 19}, count = (int32_t)(n % (MOST + 1));
    k->add_lines(to + shift, step, which, count, lines, LD, n);
    qk_kernels_scalar.add_lines(scalar + shift, step, which, count, lines, LD, n);
    for (size_t i = 0; i < LD; i++) {
        double sum = before[i];
        for (int32_t c = 0; c < count && i >= shift && i < shift + n; c++)
            sum += (double)step[c] * lines[(size_t)which[c] * LD + i - shift];
        CHECK(fabs(to[i] - sum) <= 1e-5);
    }
    CHECK_SAME(to, scalar, LD);
    void *arrays[] = {to, before, lines, scalar, step};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static void add_lines_adds_multiples_of_lines(void) { for_every_line_count(check_add_lines); }

static void round_lane_by_lane(lane_data *d, size_t n) {
    for (size_t lane = 0; lane < QK_LANES; lane++)
        for (size_t k = n; k-- > 0;) {
            const size_t at = d->shift + k * QK_LANES + lane;
            const float best = d->target[at] - d->sums[at] / d->square[k * LD + k];
            const float scale = d->scale[scale_at(d, lane, k)], zp = d->zp[scale_at(d, lane, k)];
            d->q[at] = clipped(rintf(best / scale) + zp, d->lo[at], d->hi[at]);
            d->steps[at] = scale * (d->q[at] - zp) - d->target[at];
            for (size_t i = 0; i < k; i++)
                d->sums[d->shift + i * QK_LANES + lane] += d->square[k * LD + i] * d->steps[at];
        }
}

static void check_round_carrying(const qk_kernels *k, size_t n, size_t shift) {
    lane_data got = lane_data_new(n, shift, true), scalar = lane_data_new(n, shift, true);
    lane_data naive = lane_data_new(n, shift, true);
    k->round_carrying(&got.lanes, got.target + shift, got.square, LD, got.sums + shift, got.steps + shift, n);
    qk_kernels_scalar.round_carrying(&scalar.lanes, scalar.target + shift, scalar.square, LD, scalar.sums + shift,
                                     scalar.steps + shift, n);
    round_lane_by_lane(&naive, n);
    check_same_lanes(&got, &scalar);
    check_equal_lanes(&got, &naive);
    lane_data_free(&got);
    lane_data_free(&scalar);
    lane_data_free(&naive);
}

static void round_carrying_carries_lane_by_lane(void) { for_every_line_count(check_round_carrying); }

/* ---- dispatch -------------------------------------------------------------------------------- */

typedef struct {
    const char *cap, *expected; /* NULL: the cap is refused */
} cap_case;

static bool chooses(void *context) {
    const cap_case *c = context;
    setenv("QK_MAX_ISA", c->cap, 1);
    return c->expected ? qk_isa_cap_is_known() && strcmp(qk_isa(), c->expected) == 0 : !qk_isa_cap_is_known();
}

/* The kernels are chosen once in a process, so each cap gets a process of its own. */
static bool chosen_under_cap(const char *cap, const char *expected) {
    cap_case c = {cap, expected};
    return qk_child_succeeds(chooses, &c);
}

static void the_cap_chooses_the_table(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int i = 0; i < count; i++) CHECK(chosen_under_cap(tables[i]->isa, tables[i]->isa));
    CHECK(chosen_under_cap("", tables[count - 1]->isa));
    const char *unknown[] = {"AVX2", "sse2", "avx", "avx512 ", "avx512vnni2", "none"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) CHECK(chosen_under_cap(unknown[i], NULL));
}

QK_TESTS(QK_TEST(the_cap_chooses_the_table), QK_TEST(fake_quant_is_quantize_then_dequantize),
         QK_TEST(dequantize_subtracts_then_scales), QK_TEST(min_max_widens_and_finds_every_nan),
         QK_TEST(bin_indices_are_floors), QK_TEST(drop_zeros_keeps_all_others),
         QK_TEST(add_counts_adds_two_full_counts), QK_TEST(sums_are_sums), QK_TEST(dot_and_axpy_in_float64),
         QK_TEST(gram_panel_adds_both_triangles), QK_TEST(gathers_take_what_the_index_names),
         QK_TEST(dot_f32_is_a_sum_of_products), QK_TEST(add_lines_adds_multiples_of_lines),
         QK_TEST(descend_line_minimises_input_by_input), QK_TEST(round_carrying_carries_lane_by_lane))
