#include "base/memory.h"

#include "qk_test.h"

static void products_that_do_not_fit_are_negative(void) {
    const int64_t big = INT64_C(1) << 32;
    CHECK(QK_PRODUCT(3, 4, 5) == 60);
    CHECK(QK_PRODUCT(7) == 7 && QK_PRODUCT(0, 5) == 0);
    CHECK(QK_PRODUCT(INT64_MAX, 1) == INT64_MAX);
    CHECK(QK_PRODUCT(big, big) == -1); /* 0 when it wraps */
    CHECK(QK_PRODUCT(big, big, 0) == -1);
    CHECK(QK_PRODUCT(-1, 5) == -1 && QK_PRODUCT(-1, -1) == -1 && QK_PRODUCT(5, INT64_MIN) == -1);
}

static void memory_of_no_size_is_refused(void) {
    CHECK(QK_NEW(double, INT64_C(1) << 32, INT64_C(1) << 32) == NULL);
    CHECK(QK_NEW(double, INT64_C(1) << 61) == NULL); /* its bytes do not fit */
    CHECK(QK_NEW(double, -1) == NULL);
    double *none = QK_NEW(double, 0), *some = QK_NEW(double, 2, 3);
    CHECK(none != NULL && some != NULL && some[5] == 0);
    free(none);
    free(some);
}

static void division_rounds_up_whatever_the_size(void) {
    CHECK(qk_ceil_div(0, 3) == 0 && qk_ceil_div(3, 3) == 1 && qk_ceil_div(4, 3) == 2);
    CHECK(qk_ceil_div(INT64_MAX, 2) == INT64_C(1) << 62 && qk_ceil_div(1, INT64_MAX) == 1);
}

QK_TESTS(QK_TEST(products_that_do_not_fit_are_negative), QK_TEST(memory_of_no_size_is_refused),
         QK_TEST(division_rounds_up_whatever_the_size))
