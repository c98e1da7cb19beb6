/* Scale and zero point of a range, and the status texts. */
#include <float.h>

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

/* Whether s is m 2^n with a mantissa of at most so many bits. */
static bool has_mantissa(float s, int bits) {
    int exponent;
    const double m = ldexp(frexp(s, &exponent), bits);
    return m == floor(m);
}

static void a_scale_is_the_next_larger_one_of_its_kind(void) {
    const qk_grid grids[] = {uint8, int8, int8_symmetric};
    const struct {
        qk_scale_type type;
        int bits;
    } kinds[] = {{QK_SCALE_POWER_OF_2, 1}, {QK_SCALE_INT16, 15}};
    qk_random r = {3};
    for (int i = 0; i < 3000; i++) {
        const double lo = qk_uniform(&r, -1, 0) * exp2(i % 40 - 20), hi = qk_uniform(&r, 0, 1) * exp2(i % 40 - 20);
        for (int k = 0; k < 2; k++) {
            qk_grid grid = grids[i % 3];
            const qk_affine any = qk_affine_from_range(lo, hi, grid);
            grid.scale_type = kinds[k].type;
            const qk_affine found = qk_affine_from_range(lo, hi, grid);
            CHECK(has_mantissa(found.scale, kinds[k].bits));
            CHECK(found.scale >= any.scale * (1 - 1e-7));
            CHECK(found.scale < any.scale * (k ? 1 + 0x1p-13 : 2));
            /* the range still lies on the grid, but for the half step that the zero point is rounded by */
            CHECK(lo >= ((double)grid.qmin - found.zero_point - 0.5) * found.scale * (1 + 1e-6));
            CHECK(hi <= ((double)grid.qmax - found.zero_point + 0.5) * found.scale * (1 + 1e-6));
            CHECK(found.zero_point >= grid.qmin && found.zero_point <= grid.qmax);
            CHECK(!grid.symmetric || found.zero_point == any.zero_point);
        }
    }
}

static void a_scale_that_is_of_its_kind_stays(void) {
    const qk_grid power = {-127, 127, true, QK_SCALE_POWER_OF_2}, int16 = {0, 255, false, QK_SCALE_INT16};
    for (int e = -100; e <= 100; e++) {
        const float s = ldexpf(1, e);
        CHECK(qk_affine_from_range(-127.0 * s, 3.0 * s, power).scale == s);
        CHECK(qk_affine_from_range(0, 127.0 * s * (1 + 1e-9), power).scale == 2 * s);
        CHECK(qk_affine_from_range(0, 255.0 * s * 20001, int16).scale == s * 20001);
    }
    CHECK(qk_affine_from_range(0, 0, power).scale == 1);
    CHECK(isfinite(qk_affine_from_range(0, FLT_MAX, (qk_grid){0, 1, false, QK_SCALE_POWER_OF_2}).scale));
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
         QK_TEST(an_empty_range_gets_scale_one), QK_TEST(a_scale_is_the_next_larger_one_of_its_kind),
         QK_TEST(a_scale_that_is_of_its_kind_stays), QK_TEST(every_status_has_a_text))
