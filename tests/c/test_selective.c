/* Selective update: L2 norms against sums that are slow and obvious, and the rule on scores written down by hand. */
#include "qk_test.h"

static double distance(const float *a, const float *b, int64_t n) {
    long double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((long double)a[i] - b[i]) * ((long double)a[i] - b[i]);
    return (double)sqrtl(sum);
}

static void the_norms_of_the_samples_are_added(void) {
    const float have[] = {3, 0, 4, 1, 1, 1}, want[] = {0, 0, 0, 1, 1, 3}; /* norms 5 and 2 */
    CHECK(qk_add_distances(0, have, want, 2, 3) == 7);
    CHECK(qk_add_distances(0.5, have, want, 1, 3) == 5.5);
    CHECK(qk_add_distances(0.5, have, want, 0, 3) == 0.5);
}

static void any_size_is_summed_in_full(void) {
    qk_random random = {1};
    for (int64_t size = 0; size <= 40; size++) {
        float *a = qk_floats(&random, 3 * size, -2, 2), *b = qk_floats(&random, 3 * size, -2, 2);
        double expected = 0;
        for (int64_t i = 0; i < 3; i++) expected += distance(a + i * size, b + i * size, size);
        CHECK_CLOSE(qk_add_distances(0, a, b, 3, size), expected, 1e-14);
        free(a);
        free(b);
    }
}

/* In float32 the square would overflow, or the small difference be lost in the sum of many. */
static void differences_of_any_size_count(void) {
    const float far[] = {3e30f, 0}, near[] = {-1e30f, 0};
    CHECK_CLOSE(qk_add_distances(0, far, near, 1, 2), 4e30, 1e-6);

    enum { MANY = 1 << 20 };
    float *a = MEMORY(float, MANY), *b = MEMORY(float, MANY);
    for (int i = 0; i < MANY; i++) a[i] = 1e-4f;
    a[0] = 64;
    CHECK_CLOSE(qk_add_distances(0, a, b, 1, MANY), distance(a, b, MANY), 1e-10);
    free(a);
    free(b);
}

static void the_cut_into_batches_does_not_matter(void) {
    qk_random random = {2};
    float *a = qk_floats(&random, 12 * 7, -1, 1), *b = qk_floats(&random, 12 * 7, -1, 1);
    const double whole = qk_add_distances(0, a, b, 12, 7);
    double parts = qk_add_distances(0, a, b, 5, 7);
    parts = qk_add_distances(parts, a + 35, b + 35, 6, 7);
    parts = qk_add_distances(parts, a + 77, b + 77, 1, 7);
    CHECK_SAME(&whole, &parts, 1);
    free(a);
    free(b);
}

static void only_strictly_better_is_kept(void) {
    CHECK(qk_is_better(7, INFINITY));
    CHECK(!qk_is_better(7, 7));
    CHECK(!qk_is_better(nextafter(7, 8), 7));
    CHECK(qk_is_better(nextafter(7, 6), 7));
    CHECK(qk_is_better(-2, -1)); /* an evaluator's score, turned round, may have any sign */
    CHECK(!qk_is_better(0, -2));
    CHECK(!qk_is_better(INFINITY, INFINITY));
    CHECK(!qk_is_better(NAN, 7));
    CHECK(!qk_is_better(NAN, INFINITY));
}

QK_TESTS(QK_TEST(the_norms_of_the_samples_are_added), QK_TEST(any_size_is_summed_in_full),
         QK_TEST(differences_of_any_size_count), QK_TEST(the_cut_into_batches_does_not_matter),
         QK_TEST(only_strictly_better_is_kept))
