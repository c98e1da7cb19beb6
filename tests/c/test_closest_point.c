/* The search for the closest point against every point of tiny ranges, and against GPTQ. */
#include "integer_rows_cases.h"

static void search(const problem *p, int lane, int64_t K) {
    double *l = MEMORY(double, K * K), *target = MEMORY(double, K);
    for (int64_t i = 0; i < K * K; i++) l[i] = p->factor[i];
    for (int64_t k = 0; k < K; k++) target[k] = p->target[k * QK_LANES + lane];
    qk_closest_point(&p->rows, lane, target, l);
    free(target);
    free(l);
}

static void the_closest_point_of_tiny_ranges_is_found(void) {
    enum { PROBLEMS = 25, COUNT = 4 };
    for (uint64_t seed = 0; seed < PROBLEMS; seed++) {
        const int wide = seed % 3 == 0;
        problem p = real_problem(seed, COUNT, wide ? 4 : 9, wide);
        for (int lane = 0; lane < COUNT; lane++) {
            const double best = brute_force(&p, lane);
            search(&p, lane, p.rows.inputs);
            CHECK_CLOSE(error_of(&p, lane), best, 1e-5);
        }
        problem_free(p);
    }
}

/* Where there is no time to look at all points: what was found first counts. */
static void the_search_is_never_worse_than_gptq(void) {
    enum { COUNT = 4, K = QK_FEW_INPUTS };
    int better = 0;
    for (uint64_t seed = 0; seed < 10; seed++) {
        problem p = real_problem(seed, COUNT, K, 2);
        double rounded[COUNT];
        gptq(&p);
        for (int lane = 0; lane < COUNT; lane++) rounded[lane] = error_of(&p, lane);
        for (int lane = 0; lane < COUNT; lane++) {
            search(&p, lane, K);
            for (int64_t at = lane; at < K * QK_LANES; at += QK_LANES)
                CHECK(p.rows.q[at] >= p.lo[at] && p.rows.q[at] <= p.hi[at]);
            CHECK(error_of(&p, lane) <= rounded[lane] * (1 + 1e-3));
            better += error_of(&p, lane) < 0.99 * rounded[lane];
        }
        problem_free(p);
    }
    CHECK(better > 20);
}

QK_TESTS(QK_TEST(the_closest_point_of_tiny_ranges_is_found), QK_TEST(the_search_is_never_worse_than_gptq))
