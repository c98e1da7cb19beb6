/* Scale and zero point of a range, and the status texts. */
#include "qk_test.h"

static const qk_grid uint8 = {0, 255, false}, int8 = {-128, 127, false}, int8_symmetric = {-127, 127, true};

static void the_range_maps_onto_the_grid(void) {
    qk_random r = {1};
    for (int i = 0; i < 1000; i++) {
        const double lo = qk_uniform(&r, -10, 1), hi = lo + qk_uniform(&r, 0.001, 10);
        const double from = fmin(lo, 0), to = fmax(hi, 0);
        const qk_affine u = qk_affine_from_range(lo, hi, uint8), s = qk_affine_from_range(lo, hi, int8);
        CHECK(u.scale == (float)((to - from) / 255));
        CHECK(u.zero_point == (int32_t)rint(-from / ((to - from) / 255)));
        CHECK(u.zero_point >= 0 && u.zero_point <= 255);
        CHECK(s.scale == u.scale);
        CHECK(s.zero_point == (int32_t)rint(-128 - from / ((to - from) / 255)));
        const qk_affine z = qk_affine_from_range(lo, hi, int8_symmetric);
        CHECK(z.zero_point == 0);
        CHECK(z.scale == (float)(fmax(-from, to) / 127));
    }
}

static void zero_is_always_in_the_range(void) {
    const qk_affine positive = qk_affine_from_range(2, 5.1, uint8), negative = qk_affine_from_range(-5.1, -2, uint8);
    CHECK(positive.zero_point == 0);
    CHECK(negative.zero_point == 255);
    CHECK(positive.scale == (float)(5.1 / 255));
    CHECK(negative.scale == positive.scale);
}

static void an_empty_range_gets_scale_one(void) {
    const qk_affine a = qk_affine_from_range(0, 0, uint8), b = qk_affine_from_range(-1e-40, 1e-40, int8_symmetric);
    CHECK(a.scale == 1 && a.zero_point == 0);
    CHECK(b.scale == 1 && b.zero_point == 0);
}

static void every_status_has_a_text(void) {
    for (int a = QK_OK; a <= QK_E_NO_ROWS; a++) {
        CHECK(strlen(qk_strerror((qk_status)a)) > 5);
        CHECK(strcmp(qk_strerror((qk_status)a), "unknown status") != 0);
        for (int b = QK_OK; b < a; b++) CHECK(strcmp(qk_strerror((qk_status)a), qk_strerror((qk_status)b)) != 0);
    }
    CHECK(strcmp(qk_strerror((qk_status)99), "unknown status") == 0);
}

QK_TESTS(QK_TEST(the_range_maps_onto_the_grid), QK_TEST(zero_is_always_in_the_range),
         QK_TEST(an_empty_range_gets_scale_one), QK_TEST(every_status_has_a_text))
