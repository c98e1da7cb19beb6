/* Warm-up and the annealed exponent, against values worked out by hand. */
#include "training/schedule.h"

#include "qk_test.h"

static void the_regulariser_waits_for_the_warm_up(void) {
    const qk_schedule s = {.iterations = 1000, .warm_start = 0.2, .beta_start = 20, .beta_end = 2};
    for (int64_t it = 0; it < s.iterations; it++) CHECK(qk_schedule_is_warm(&s, it) == (it >= 200));
}

static void a_warm_up_may_end_between_two_steps(void) {
    const qk_schedule s = {.iterations = 7, .warm_start = 0.5, .beta_start = 20, .beta_end = 2}; /* 3.5 steps */
    CHECK(!qk_schedule_is_warm(&s, 3));
    CHECK(qk_schedule_is_warm(&s, 4));
    CHECK(qk_schedule_beta(&s, 3) == 20);
    CHECK(qk_schedule_beta(&s, 4) < 20);
}

static void without_warm_up_the_first_step_counts(void) {
    const qk_schedule s = {.iterations = 10, .warm_start = 0, .beta_start = 20, .beta_end = 2};
    CHECK(qk_schedule_is_warm(&s, 0));
    CHECK(qk_schedule_beta(&s, 0) == 20);
    CHECK_CLOSE(qk_schedule_beta(&s, 5), 11, 1e-12);
}

static void a_warm_up_of_all_steps_never_ends(void) {
    const qk_schedule s = {.iterations = 10, .warm_start = 1, .beta_start = 20, .beta_end = 2};
    for (int64_t it = 0; it < s.iterations; it++) {
        CHECK(!qk_schedule_is_warm(&s, it));
        CHECK(qk_schedule_beta(&s, it) == 20);
    }
}

/* 11 + 9 cos(pi r), r the share of the steps after warm-up that are done. */
static void beta_falls_along_a_cosine(void) {
    const qk_schedule s = {.iterations = 1000, .warm_start = 0.2, .beta_start = 20, .beta_end = 2};
    const struct {
        int64_t it;
        double beta, tolerance;
    } known[] = {{0, 20, 0},       {199, 20, 0},       {200, 20, 0},          {400, 17.36, 0.005 / 17},
                 {600, 11, 1e-12}, {800, 4.64, 0.001}, {999, 2.0001, 0.00005}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        CHECK_CLOSE(qk_schedule_beta(&s, known[i].it), known[i].beta, known[i].tolerance);
    for (int64_t it = 201; it < s.iterations; it++) CHECK(qk_schedule_beta(&s, it) < qk_schedule_beta(&s, it - 1));
    CHECK(qk_schedule_beta(&s, 999) > 2);
}

static void beta_may_rise_or_stay(void) {
    const qk_schedule rise = {.iterations = 100, .warm_start = 0.1, .beta_start = 2, .beta_end = 8};
    const qk_schedule stay = {.iterations = 100, .warm_start = 0.1, .beta_start = 3, .beta_end = 3};
    CHECK_CLOSE(qk_schedule_beta(&rise, 55), 5, 1e-12);
    for (int64_t it = 0; it < 100; it++) CHECK(qk_schedule_beta(&stay, it) == 3);
}

QK_TESTS(QK_TEST(the_regulariser_waits_for_the_warm_up), QK_TEST(a_warm_up_may_end_between_two_steps),
         QK_TEST(without_warm_up_the_first_step_counts), QK_TEST(a_warm_up_of_all_steps_never_ends),
         QK_TEST(beta_falls_along_a_cosine), QK_TEST(beta_may_rise_or_stay))
