/* The kernels between a layer's output and its loss: every table against loops in float64, and against the scalar one
 * bit for bit. */
#include "stage_reference.h"
#include "tables.h"

enum { TAILS = 71, MOST = 700 }; /* lengths 0 .. 70, and longer ones */
static const size_t longer[] = {255, 256, 512, 700};
enum { LENGTHS = TAILS + sizeof longer / sizeof *longer };

/* Runs check(table, n, shift) for every length; shift makes addresses aligned and unaligned. */
static void for_every_length(void (*check)(const qk_kernels *, size_t, size_t)) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (size_t i = 0; i < LENGTHS; i++)
        for (size_t shift = 0; shift < 2; shift++)
            for (int t = 0; t < count; t++) check(tables[t], i < TAILS ? i : longer[i - TAILS], shift);
}

/* n values with a guard behind them. */
static float *guarded(qk_random *random, size_t n, size_t shift, float lo, float hi) {
    float *x = qk_floats(random, (int64_t)(n + shift + 1), lo, hi);
    x[n + shift] = -77;
    return x;
}

/* ---- activate -------------------------------------------------------------------------------- */

/* The derivative where there is one; at a jump that of either side. */
static void check_slope(const qk_activation *f, double x, double slope) {
    const double near = 1e-5;
    double kinks[2];
    bool smooth = true;
    for (int i = 0, n = ref_kinks(f, kinks); i < n; i++) smooth &= fabs(x - kinks[i]) > near;
    if (smooth) {
        CHECK_CLOSE(slope, ref_slope(f, x), 2e-6);
        return;
    }
    const double left = ref_slope(f, x - 2 * near), right = ref_slope(f, x + 2 * near);
    CHECK(fabs(slope - left) < 1e-4 || fabs(slope - right) < 1e-4);
}

static void check_activate(const qk_kernels *k, size_t n, size_t shift) {
    const float bias = 0.375f;
    for (int kind = 0; kind < REF_ACTIVATIONS; kind++) {
        const qk_activation *f = &ref_activations[kind];
        qk_random random = {n * 31 + (uint64_t)kind};
        float *z = guarded(&random, n, shift, -5, 5);
        float *value = guarded(&random, n, shift, 0, 0), *slope = guarded(&random, n, shift, 0, 0);
        float *scalar_value = guarded(&random, n, shift, 0, 0), *scalar_slope = guarded(&random, n, shift, 0, 0);
        k->activate(value + shift, slope + shift, z + shift, bias, f, n);
        qk_kernels_scalar.activate(scalar_value + shift, scalar_slope + shift, z + shift, bias, f, n);
        CHECK_SAME(value, scalar_value, n + shift + 1);
        CHECK_SAME(slope, scalar_slope, n + shift + 1);
        for (size_t i = shift; i < n + shift; i++) {
            const float x = z[i] + bias; /* added in float32, as the layer would */
            CHECK_CLOSE(value[i], ref_activation(f, x), 1e-6);
            check_slope(f, x, slope[i]);
        }
        CHECK(value[n + shift] == -77 && slope[n + shift] == -77);
        float *arrays[] = {z, value, slope, scalar_value, scalar_slope};
        for (int i = 0; i < 5; i++) free(arrays[i]);
    }
}

static void activate_gives_the_value_and_its_derivative(void) { for_every_length(check_activate); }

/* From -100 to 100, at 0 and at every jump; then sizes that overflow what the polynomials are made for. */
static void activate_is_right_far_out(void) {
    enum { STEPS = 6400, COUNT = 2 * STEPS + 1 };
    static float x[COUNT], value[COUNT], slope[COUNT], scalar_value[COUNT], scalar_slope[COUNT];
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int i = 0; i < COUNT; i++) x[i] = (float)(i - STEPS) / 64;
    for (int t = 0; t < count; t++)
        for (int kind = 0; kind < REF_ACTIVATIONS; kind++) {
            const qk_activation *f = &ref_activations[kind];
            tables[t]->activate(value, slope, x, 0, f, COUNT);
            qk_kernels_scalar.activate(scalar_value, scalar_slope, x, 0, f, COUNT);
            CHECK_SAME(value, scalar_value, COUNT);
            CHECK_SAME(slope, scalar_slope, COUNT);
            for (int i = 0; i < COUNT; i++) {
                CHECK_CLOSE(value[i], ref_activation(f, x[i]), 1e-6);
                check_slope(f, x[i], slope[i]);
            }
            const float far[] = {-1e6f, -1000, -100.5f, 100.5f, 1000, 1e6f};
            enum { FAR = sizeof far / sizeof *far };
            tables[t]->activate(value, slope, far, 0, f, FAR);
            for (int i = 0; i < FAR; i++) {
                CHECK_CLOSE(value[i], ref_activation(f, far[i]), 1e-6);
                CHECK(fabs(slope[i] - (ref_activation(f, far[i] + 1.0) - ref_activation(f, far[i] - 1.0)) / 2) < 1e-6);
            }
        }
}

static void activate_hides_no_nan(void) {
    const float nan = NAN;
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int t = 0; t < count; t++)
        for (int kind = 0; kind < REF_ACTIVATIONS; kind++) {
            float value = 0, slope = 0;
            tables[t]->activate(&value, &slope, &nan, 0, &ref_activations[kind], 1);
            CHECK(isnan(value));
        }
}

/* ---- fake_quant_through ---------------------------------------------------------------------- */

static void check_through(const qk_kernels *k, size_t n, size_t shift) {
    const qk_affine affine = {0.11f, 3};
    const qk_grid grid = {.qmin = -8, .qmax = 7};
    const qk_output_stage stage = {.quantized = true, .affine = affine, .grid = grid};
    qk_random random = {n + 7};
    float *before = guarded(&random, n, shift, -2.5f, 2.5f), *slope = guarded(&random, n, shift, -1, 1);
    for (size_t i = 0; i < n; i += 3) /* ties, some of them on the edge of the grid */
        before[shift + i] = affine.scale * 0.5f * (float)((int)(i % 60) - 30);
    float *got = guarded(&random, n, shift, 0, 0), *through = guarded(&random, n, shift, 0, 0);
    float *scalar = guarded(&random, n, shift, 0, 0), *scalar_through = guarded(&random, n, shift, 0, 0);
    for (int run = 0; run < 2; run++) {
        float *value = run ? scalar : got, *to = run ? scalar_through : through;
        memcpy(value, before, (n + shift) * sizeof *value);
        memcpy(to, slope, (n + shift) * sizeof *to);
        (run ? &qk_kernels_scalar : k)->fake_quant_through(value + shift, to + shift, n, affine, grid);
    }
    CHECK_SAME(got, scalar, n + shift + 1);
    CHECK_SAME(through, scalar_through, n + shift + 1);
    int64_t inside_grid = 0;
    for (size_t i = shift; i < n + shift; i++) {
        const double in_steps =
            (double)(before[i] / affine.scale) * affine.scale; /* divided in float32, as ONNX does */
        const bool inside = ref_inside(&stage, in_steps) > 0;
        inside_grid += inside;
        CHECK_CLOSE(got[i], ref_rounded(&stage, in_steps), 1e-6);
        CHECK(through[i] == (inside ? slope[i] : 0));
    }
    CHECK(n < 40 || (inside_grid > 0 && inside_grid < (int64_t)n)); /* both were tried */
    CHECK(got[n + shift] == -77 && through[n + shift] == -77);
    float *arrays[] = {before, slope, got, through, scalar, scalar_through};
    for (int i = 0; i < 6; i++) free(arrays[i]);
}

static void fake_quant_passes_the_derivative_inside_of_the_grid(void) { for_every_length(check_through); }

/* The end of the grid itself is inside, what is rounded to the next integer is not; NaN stays. */
static void fake_quant_at_the_ends_of_the_grid(void) {
    const float values[] = {7.5f, 7.49f, 7, -8.5f, -8.51f, -9, 1e30f, -1e30f, INFINITY, NAN};
    const float expected[] = {7, 7, 7, -8, -8, -8, 7, -8, 7, NAN};
    const bool inside[] = {false, true, true, true, false, false, false, false, false, false}; /* ties go to even */
    enum { COUNT = sizeof values / sizeof *values };
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int t = 0; t < count; t++) {
        float value[COUNT], slope[COUNT];
        memcpy(value, values, sizeof values);
        for (int i = 0; i < COUNT; i++) slope[i] = 0.25f;
        tables[t]->fake_quant_through(value, slope, COUNT, (qk_affine){1, 0}, (qk_grid){.qmin = -8, .qmax = 7});
        for (int i = 0; i < COUNT; i++) {
            CHECK(value[i] == expected[i] || (isnan(value[i]) && isnan(expected[i])));
            CHECK(slope[i] == (inside[i] ? 0.25f : 0));
        }
    }
}

/* ---- sloped_error ---------------------------------------------------------------------------- */

static void check_sloped_error(const qk_kernels *k, size_t n, size_t shift) {
    qk_random random = {n + 9};
    float *value = guarded(&random, n, shift, -3, 3), *target = guarded(&random, n, shift, -3, 3);
    float *slope = guarded(&random, n, shift, -1, 1), *error = guarded(&random, n, shift, 0, 0);
    float *scalar = guarded(&random, n, shift, 0, 0);
    const double squares = k->sloped_error(error + shift, value + shift, target + shift, slope + shift, n);
    const double same = qk_kernels_scalar.sloped_error(scalar + shift, value + shift, target + shift, slope + shift, n);
    CHECK_SAME(error, scalar, n + shift + 1);
    CHECK_SAME(&squares, &same, 1);
    double expected = 0;
    for (size_t i = shift; i < n + shift; i++) {
        const double difference = (double)value[i] - target[i];
        CHECK_CLOSE(error[i], difference * slope[i], 1e-6);
        expected += difference * difference;
    }
    CHECK_CLOSE(squares, expected, 1e-5);
    CHECK(error[n + shift] == -77);
    float *arrays[] = {value, target, slope, error, scalar};
    for (int i = 0; i < 5; i++) free(arrays[i]);
}

static void sloped_error_sums_squares_before_the_slope(void) { for_every_length(check_sloped_error); }

QK_TESTS(QK_TEST(activate_gives_the_value_and_its_derivative), QK_TEST(activate_is_right_far_out),
         QK_TEST(activate_hides_no_nan), QK_TEST(fake_quant_passes_the_derivative_inside_of_the_grid),
         QK_TEST(fake_quant_at_the_ends_of_the_grid), QK_TEST(sloped_error_sums_squares_before_the_slope))
