/* Selective update: L2 norms against sums that are slow and obvious, and the rule on scores written down by hand. */
#include "qk_test.h"

static double distance(const float *a, const float *b, int64_t n) {
    long double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((long double)a[i] - b[i]) * ((long double)a[i] - b[i]);
    return (double)sqrtl(sum);
}

static void the_score_is_the_mean_norm_of_the_samples(void) {
    const float have[] = {3, 0, 4, 1, 1, 1}, want[] = {0, 0, 0, 1, 1, 3}; /* norms 5 and 2 */
    qk_selective s = qk_selective_start();
    qk_selective_add(&s, have, want, 2, 3);
    CHECK(qk_selective_score(&s) == 3.5);
    qk_selective_add(&s, have, want, 1, 3);
    CHECK(qk_selective_score(&s) == 5); /* the score before is forgotten */
}

static void any_size_is_summed_in_full(void) {
    qk_random random = {1};
    for (int64_t size = 0; size <= 40; size++) {
        float *a = qk_floats(&random, 3 * size, -2, 2), *b = qk_floats(&random, 3 * size, -2, 2);
        double expected = 0;
        for (int64_t i = 0; i < 3; i++) expected += distance(a + i * size, b + i * size, size) / 3;
        qk_selective s = qk_selective_start();
        qk_selective_add(&s, a, b, 3, size);
        CHECK_CLOSE(qk_selective_score(&s), expected, 1e-14);
        free(a);
        free(b);
    }
}

/* In float32 the square would overflow, or the small difference be lost in the sum of many. */
static void differences_of_any_size_count(void) {
    const float far[] = {3e30f, 0}, near[] = {-1e30f, 0};
    qk_selective s = qk_selective_start();
    qk_selective_add(&s, far, near, 1, 2);
    CHECK_CLOSE(qk_selective_score(&s), 4e30, 1e-6);

    enum { MANY = 1 << 20 };
    float *a = MEMORY(float, MANY), *b = MEMORY(float, MANY);
    for (int i = 0; i < MANY; i++) a[i] = 1e-4f;
    a[0] = 64;
    qk_selective_add(&s, a, b, 1, MANY);
    CHECK_CLOSE(qk_selective_score(&s), distance(a, b, MANY), 1e-10);
    free(a);
    free(b);
}

static void the_cut_into_batches_does_not_matter(void) {
    qk_random random = {2};
    float *a = qk_floats(&random, 12 * 7, -1, 1), *b = qk_floats(&random, 12 * 7, -1, 1);
    qk_selective whole = qk_selective_start(), parts = qk_selective_start();
    qk_selective_add(&whole, a, b, 12, 7);
    qk_selective_add(&parts, a, b, 5, 7);
    qk_selective_add(&parts, a + 35, b + 35, 6, 7);
    qk_selective_add(&parts, a + 77, b + 77, 1, 7);
    const double scores[] = {qk_selective_score(&whole), qk_selective_score(&parts)};
    CHECK_SAME(&scores[0], &scores[1], 1);
    free(a);
    free(b);
}

static void nothing_has_no_score(void) {
    qk_selective s = qk_selective_start();
    CHECK(isnan(qk_selective_score(&s)));
}

static void only_strictly_better_is_kept(void) {
    qk_selective s = qk_selective_start();
    CHECK(qk_selective_keep(&s, 7));
    CHECK(!qk_selective_keep(&s, 7));
    CHECK(!qk_selective_keep(&s, nextafter(7, 8)));
    CHECK(qk_selective_keep(&s, nextafter(7, 6)));
    CHECK(!qk_selective_keep(&s, 7)); /* better than the start, not than what was kept since */
    CHECK(qk_selective_keep(&s, -1)); /* an evaluator's score, turned round, may have any sign */
    CHECK(qk_selective_keep(&s, -2));
    CHECK(!qk_selective_keep(&s, 0));
}

static void what_is_discarded_does_not_count(void) {
    qk_selective s = qk_selective_start();
    CHECK(qk_selective_keep(&s, 4));
    CHECK(!qk_selective_keep(&s, 9));
    CHECK(!qk_selective_keep(&s, 5)); /* better than the one discarded */
    CHECK(s.best == 4);
}

static void what_is_not_a_number_is_not_kept(void) {
    qk_selective s = qk_selective_start();
    CHECK(!qk_selective_keep(&s, NAN));
    CHECK(!qk_selective_keep(&s, INFINITY));
    CHECK(qk_selective_keep(&s, 1e300));
    CHECK(!qk_selective_keep(&s, NAN));
    CHECK(qk_selective_keep(&s, 1));
}

QK_TESTS(QK_TEST(the_score_is_the_mean_norm_of_the_samples), QK_TEST(any_size_is_summed_in_full),
         QK_TEST(differences_of_any_size_count), QK_TEST(the_cut_into_batches_does_not_matter),
         QK_TEST(nothing_has_no_score), QK_TEST(only_strictly_better_is_kept),
         QK_TEST(what_is_discarded_does_not_count), QK_TEST(what_is_not_a_number_is_not_kept))
