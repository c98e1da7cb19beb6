/* Ranges and histograms of streams against a sorted copy of all values. */
#include "qk_test.h"

static qk_status update(qk_value_range *range, const float *x, int64_t n) {
    const size_t size = (size_t)n;
    size_t bad;
    return qk_value_ranges_update(&range, &x, &size, 1, &bad);
}

/* The range of x, arriving in batches, which take turns in `parts` ranges that are added up in the end. */
static qk_value_range *range_of(const float *x, int64_t n, int bins, int64_t batch, int parts) {
    qk_value_range *ranges[4];
    for (int i = 0; i < parts; i++) ranges[i] = qk_value_range_new(bins);
    for (int64_t at = 0; at < n; at += batch)
        CHECK(update(ranges[at / batch % parts], x + at, at + batch < n ? batch : n - at) == QK_OK);
    for (int i = 1; i < parts; i++) {
        qk_value_range_add(ranges[0], ranges[i]);
        qk_value_range_free(ranges[i]);
    }
    return ranges[0];
}

/* The least 2^e such that `largest` lies inside of bins * 2^e. */
static double bin_width(double largest, int bins) {
    double width = 0x1p-120;
    while (largest >= bins * width) width *= 2;
    return width;
}

/* The upper edge of the bin [i width, (i + 1) width) that completes the wanted share of the values. */
static double naive_percentile(const float *x, int64_t n, int bins, double percentile) {
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(x[i]));
    const double width = bin_width(largest, bins);
    for (int bin = 0; bin < bins; bin++) {
        int64_t below = 0;
        for (int64_t i = 0; i < n; i++) below += fabs(x[i]) < (bin + 1) * width;
        if ((double)below >= percentile / 100 * (double)n) return (bin + 1) * width;
    }
    return bins * width;
}

static const double percentiles[] = {0.01, 10, 50, 90, 99, 99.9, 99.999, 100};

/* The values between the edges of each of 2 * bins bins; what lies on the last edge belongs to the last bin. */
static void naive_histogram(const float *x, int64_t n, int bins, double width, uint64_t *counts) {
    for (int64_t i = 0; i < n; i++) {
        int bin = x[i] < 0 ? -(int)floor(-(double)x[i] / width) - 1 : (int)floor((double)x[i] / width);
        bin = bin < -bins ? -bins : bin >= bins ? bins - 1 : bin;
        counts[bins + bin]++;
    }
}

static void check_histogram(const qk_value_range *range, const float *x, int64_t n, int bins) {
    uint64_t *counts = MEMORY(uint64_t, 2 * bins), *expected = MEMORY(uint64_t, 2 * bins);
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(x[i]));
    const double width = qk_value_range_histogram(range, counts);
    CHECK(width == bin_width(largest, bins));
    naive_histogram(x, n, bins, width, expected);
    CHECK_SAME(counts, expected, 2 * bins);
    free(counts);
    free(expected);
}

static void check_parts(const float *x, int64_t n, int bins, int64_t batch, int parts) {
    float lo = x[0], hi = x[0];
    for (int64_t i = 0; i < n; i++) lo = fminf(lo, x[i]), hi = fmaxf(hi, x[i]);
    qk_value_range *range = range_of(x, n, bins, batch, parts);
    CHECK(qk_value_range_min(range) == lo);
    CHECK(qk_value_range_max(range) == hi);
    CHECK(qk_value_range_count(range) == (uint64_t)n);
    for (int p = 0; p < 8; p++)
        CHECK(qk_value_range_percentile(range, percentiles[p]) == (float)naive_percentile(x, n, bins, percentiles[p]));
    check_histogram(range, x, n, bins);
    qk_value_range_free(range);
}

static void check_range(const float *x, int64_t n, int bins, int64_t batch) {
    for (int parts = 1; parts <= 4; parts++) check_parts(x, n, bins, batch, parts);
}

static void the_histogram_counts_every_value(void) {
    enum { N = 3000 };
    for (uint64_t seed = 0; seed < 6; seed++) {
        qk_random r = {seed};
        float *x = qk_floats(&r, N, seed % 2 ? -3.0f : 0.0f, seed % 3 ? 1.5f : 900.0f);
        for (int i = 0; i < N; i += 7) x[i] = 0;
        check_range(x, N, 64, N);
        check_range(x, N, 64, 100);
        free(x);
    }
}

static void bins_merge_as_larger_values_arrive(void) {
    enum { N = 2048 };
    qk_random r = {1};
    float *x = qk_floats(&r, N, -1, 1);
    for (int i = 0; i < N; i++) x[i] *= ldexpf(1.0f, i / 100 - 10); /* every hundred values, twice as large */
    for (int64_t batch = 1; batch <= N; batch *= 8) check_range(x, N, 128, batch);
    for (int i = 0; i < N / 2; i++) { /* and the other way round */
        const float t = x[i];
        x[i] = x[N - 1 - i];
        x[N - 1 - i] = t;
    }
    for (int64_t batch = 1; batch <= N; batch *= 8) check_range(x, N, 128, batch);
    free(x);
}

/* In one batch, while counts of narrower bins wait. */
static void bins_merge_in_the_middle_of_a_batch(void) {
    enum { N = 20000 };
    qk_random r = {2};
    float *x = qk_floats(&r, N, -1, 1);
    for (int i = 0; i < N; i++) x[i] *= ldexpf(1.0f, i / 5000 - 10);
    check_range(x, N, 128, N);
    free(x);
}

static void zeros_do_not_coarsen_the_bins(void) {
    float x[96] = {0};
    for (int i = 32; i < 64; i++) x[i] = 0.001f * (float)i;
    for (int64_t batch = 1; batch <= 96; batch *= 2) check_range(x, 96, 64, batch);
}

static void powers_of_two_and_tiny_values(void) {
    const float x[] = {1, 2, 4, 8, 16, 0.5f, 64, 64, 1e-30f, 1e-38f, 1e-42f, 0};
    for (int n = 1; n <= 12; n++) {
        check_range(x, n, 64, n);
        check_range(x + 12 - n, n, 64, 1);
    }
}

static void counts_do_not_overflow(void) {
    enum { N = 300000 };
    float *x = MEMORY(float, N);
    for (int i = 0; i < N; i++) x[i] = i % 3 ? 6 : 0; /* a clipped activation: a bin gets more than 16 bits hold */
    x[N - 1] = -1;
    check_range(x, N, 64, N);
    for (int i = 0; i < N; i++) x[i] = 6;
    check_range(x, N, 64, N);
    x[N - 1] = -1;
    check_range(x, N, 64, 70001);
    free(x);
}

static void many_tensors_at_once_are_kept_apart(void) {
    enum { TENSORS = 3 };
    const float a[] = {1, 2, 3}, c[] = {-7};
    const float *x[TENSORS] = {a, NULL, c};
    const size_t n[TENSORS] = {3, 0, 1};
    size_t bad;
    qk_value_range *ranges[TENSORS];
    for (int i = 0; i < TENSORS; i++) ranges[i] = qk_value_range_new(64);
    CHECK(qk_value_ranges_update(ranges, x, n, TENSORS, &bad) == QK_OK);
    CHECK(qk_value_range_min(ranges[0]) == 1 && qk_value_range_max(ranges[0]) == 3);
    CHECK(qk_value_range_count(ranges[1]) == 0);
    CHECK(qk_value_range_min(ranges[1]) == 0 && qk_value_range_max(ranges[1]) == 0);
    CHECK(qk_value_range_min(ranges[2]) == -7 && qk_value_range_max(ranges[2]) == -7);
    for (int i = 0; i < TENSORS; i++) qk_value_range_free(ranges[i]);
}

static void nan_and_inf_name_their_tensor(void) {
    const float good[] = {1, 2}, nan[] = {1, NAN}, inf[] = {-INFINITY, 1};
    const float *cases[2][2] = {{good, nan}, {inf, good}};
    const size_t n[2] = {2, 2};
    for (size_t i = 0; i < 2; i++) {
        qk_value_range *ranges[2] = {qk_value_range_new(64), qk_value_range_new(64)};
        size_t bad = 99;
        CHECK(qk_value_ranges_update(ranges, cases[i], n, 2, &bad) == QK_E_NONFINITE);
        CHECK(bad == 1 - i);
        qk_value_range_free(ranges[0]);
        qk_value_range_free(ranges[1]);
    }
}

static void an_odd_number_of_bins_is_refused(void) {
    CHECK(qk_value_range_new(63) == NULL);
    CHECK(qk_value_range_new(0) == NULL);
}

static qk_status new_and_update(void *context) {
    (void)context;
    const float x[] = {1, 2, 3};
    qk_value_range *range = qk_value_range_new(64);
    const qk_status status = range ? update(range, x, 3) : QK_E_NOMEM;
    qk_value_range_free(range);
    return status;
}

static void a_range_may_run_out_of_memory(void) { qk_refuse_each_allocation(new_and_update, NULL); }

QK_TESTS(QK_TEST(the_histogram_counts_every_value), QK_TEST(bins_merge_as_larger_values_arrive),
         QK_TEST(bins_merge_in_the_middle_of_a_batch), QK_TEST(zeros_do_not_coarsen_the_bins),
         QK_TEST(powers_of_two_and_tiny_values), QK_TEST(counts_do_not_overflow),
         QK_TEST(many_tensors_at_once_are_kept_apart), QK_TEST(nan_and_inf_name_their_tensor),
         QK_TEST(an_odd_number_of_bins_is_refused), QK_TEST(a_range_may_run_out_of_memory))
