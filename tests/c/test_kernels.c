/* The scalar table against obvious loops; every other table against the scalar one, bit for bit. */
#define _POSIX_C_SOURCE 200809L
#include "kernels/kernels.h"

#include <sys/wait.h>
#include <unistd.h>

#include "qk_test.h"

enum { TAILS = 131, SHIFTS = 3 }; /* lengths 0 .. 130, at aligned and unaligned addresses */

/* The tables that this machine can run; tables[0] is the scalar one. */
static int runnable(const qk_kernels **tables) {
    int n = 0;
    tables[n++] = &qk_kernels_scalar;
#ifdef QK_HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) tables[n++] = &qk_kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        tables[n++] = &qk_kernels_avx512;
#endif
    return n;
}

/* Runs check(table, n, shift) for every table, tail and shift; the scalar table first. */
static void for_every_tail(void (*check)(const qk_kernels *, size_t, size_t)) {
    const qk_kernels *tables[3];
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

/* ---- min_max, bin_indices -------------------------------------------------------------------- */

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
        const uint32_t bin = (uint32_t)floor(fabs((double)x[i]) * 2);
        CHECK(index[i] == (bin < last ? bin : last));
    }
    free(x);
}

static void bin_indices_are_floors(void) { for_every_tail(check_bin_indices); }

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

/* ---- dispatch -------------------------------------------------------------------------------- */

/* The kernels are chosen once in a process, so each cap gets a process of its own. */
static bool chosen_under_cap(const char *cap, const char *expected) {
    const pid_t child = fork();
    if (child == 0) {
        setenv("QK_MAX_ISA", cap, 1);
        _exit(strcmp(qk_isa(), expected) == 0 ? 0 : 1);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void the_cap_chooses_the_table(void) {
    const qk_kernels *tables[3];
    const int count = runnable(tables);
    for (int i = 0; i < count; i++) CHECK(chosen_under_cap(tables[i]->isa, tables[i]->isa));
    CHECK(chosen_under_cap("", tables[count - 1]->isa));
}

QK_TESTS(QK_TEST(the_cap_chooses_the_table), QK_TEST(fake_quant_is_quantize_then_dequantize),
         QK_TEST(dequantize_subtracts_then_scales), QK_TEST(min_max_widens_and_finds_every_nan),
         QK_TEST(bin_indices_are_floors), QK_TEST(sums_are_sums), QK_TEST(dot_and_axpy_in_float64),
         QK_TEST(gram_panel_adds_both_triangles))
