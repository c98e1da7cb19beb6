/* The two integer solvers against loops that follow their definitions, and against every point of tiny ranges.
 *
 * The solvers calculate in float32. Where two integers are about equally good they may take another one than a loop in
 * float64, and what follows differs too. So there are two kinds of problems: real ones, where the error reached is
 * compared, and ones whose numbers are small multiples of powers of two, where float32 makes no error and no two
 * integers are about equally good: there every integer must be the same. */
#include "integer_rows_cases.h"

/* Whole numbers within their ranges; unused lanes as they were. */
static void check_consistent(const problem *p) {
    for (int64_t at = 0; at < p->rows.inputs * QK_LANES; at++) {
        const float q = p->rows.q[at];
        CHECK(q == rintf(q) && q >= p->lo[at] && q <= p->hi[at]);
        if (at % QK_LANES >= p->count) CHECK(q == 0 && p->target[at] == 0);
    }
}

static const int64_t widths[] = {1, 2, 9, 63, 64, 65, 130, 257, 530}; /* around blocks of 64 and strips of 256 */
static const int64_t lanes_used[] = {32, 1, 31, 7, 32, 5, 3, 2, 2};
enum { WIDTHS = 9, FAST = 7 /* of these the loops below are fast */ };

/* What a float32 solver may leave: a step that changes the error by next to nothing, taken or not. */
static double slack_of(const problem *p, int64_t lane) {
    double most = 0;
    for (int64_t k = 0; k < p->rows.inputs; k++) {
        const double scale = p->scale[scale_at(p, lane, k)];
        most = fmax(most, scale * scale * p->gram[k * p->rows.inputs + k]);
    }
    return 1e-4 * most;
}

/* ---- coordinate descent ---------------------------------------------------------------------- */

static void naive_descent(problem *p, int sweeps) {
    const int64_t K = p->rows.inputs;
    for (int64_t lane = 0; lane < p->count; lane++)
        for (int sweep = 0; sweep < sweeps; sweep++)
            for (int64_t j = 0; j < K; j++) {
                const int64_t at = j * QK_LANES + lane;
                const double step =
                    slope_of(p, lane, j) / ((double)p->scale[scale_at(p, lane, j)] * p->gram[j * K + j]);
                p->rows.q[at] = clip(nearbyint(p->rows.q[at] - step), p->lo[at], p->hi[at]);
            }
}

/* 0 may be -0. */
static void check_equal(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) CHECK(a[i] == b[i]);
}

static void descent_follows_its_definition(void) {
    for (int w = 0; w < WIDTHS; w++)
        for (int around = 0; around < 3; around++)
            for (int sweeps = 0; sweeps < 5; sweeps++) {
                const uint64_t seed = (uint64_t)(w * 10 + around);
                problem p = exact_problem(seed, lanes_used[w], widths[w], around);
                problem naive = exact_problem(seed, lanes_used[w], widths[w], around);
                naive_descent(&naive, sweeps);
                descend(&p, sweeps);
                check_equal(p.rows.q, naive.rows.q, widths[w] * QK_LANES);
                check_consistent(&p);
                for (int64_t at = 0; at < widths[w] * QK_LANES; at++) /* the residual is kept up to date */
                    CHECK(p.residual[at] == (float)slope_of(&p, at % QK_LANES, at / QK_LANES));
                problem_free(naive);
                problem_free(p);
            }
}

static void descent_in_float32_reaches_the_same_error(void) {
    double reached = 0, expected = 0;
    int64_t differ = 0, integers = 0;
    for (int w = 0; w < WIDTHS; w++)
        for (int around = 0; around < 3; around++) {
            const uint64_t seed = (uint64_t)(w * 10 + around);
            const int64_t K = widths[w];
            problem p = real_problem(seed, lanes_used[w], K, around),
                    naive = real_problem(seed, lanes_used[w], K, around);
            naive_descent(&naive, 4);
            descend(&p, 4);
            check_consistent(&p);
            for (int64_t at = 0; at < K * QK_LANES; at++) {
                differ += p.rows.q[at] != naive.rows.q[at];
                CHECK_CLOSE(p.residual[at], slope_of(&p, at % QK_LANES, at / QK_LANES), 1e-4);
            }
            integers += K * p.count;
            for (int64_t lane = 0; lane < p.count; lane++) {
                reached += error_of(&p, lane);
                expected += error_of(&naive, lane);
            }
            problem_free(naive);
            problem_free(p);
        }
    CHECK(differ * 200 <= integers);
    CHECK(fabs(reached - expected) <= 1e-3 * expected);
}

static void descent_never_makes_a_lane_worse(void) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        problem p = real_problem(seed, 4, 70, 3);
        double before[4];
        for (int sweep = 0; sweep < 6; sweep++) {
            for (int64_t i = 0; i < 4; i++) before[i] = error_of(&p, i);
            descend(&p, 1);
            for (int64_t i = 0; i < 4; i++) CHECK(error_of(&p, i) <= before[i] + slack_of(&p, i));
        }
        problem_free(p);
    }
}

static void check_that_no_single_step_helps(problem *p, double slack) {
    for (int64_t at = 0; at < p->rows.inputs * QK_LANES; at++) {
        const int64_t lane = at % QK_LANES;
        if (lane >= p->count) continue;
        const float kept = p->rows.q[at];
        const double error = error_of(p, lane);
        for (float q = p->lo[at]; q <= p->hi[at]; q++) {
            p->rows.q[at] = q;
            CHECK(error_of(p, lane) >= error - slack * slack_of(p, lane));
        }
        p->rows.q[at] = kept;
    }
}

static void descent_ends_where_no_single_step_helps(void) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        problem p = real_problem(seed, 2, 12, 2), exact = exact_problem(seed, 32, 12, 2);
        descend(&p, 1000);
        check_that_no_single_step_helps(&p, 1);
        descend(&exact, 1000);
        check_that_no_single_step_helps(&exact, 0);
        problem_free(exact);
        problem_free(p);
    }
}

static void inputs_that_are_always_zero_stay(void) {
    const int64_t K = 80, dead = 67;
    problem p = real_problem(1, QK_LANES, K, 2);
    for (int64_t k = 0; k < K; k++) p.gram[dead * K + k] = p.gram[k * K + dead] = 0;
    set_residual(&p);
    float *before = copy_of(p.rows.q, K * QK_LANES);
    descend(&p, 20);
    CHECK_SAME(p.rows.q + dead * QK_LANES, before + dead * QK_LANES, QK_LANES);
    CHECK(memcmp(p.rows.q, before, (size_t)(K * QK_LANES) * sizeof *before) != 0);
    check_consistent(&p);
    free(before);
    problem_free(p);
}

/* ---- GPTQ ------------------------------------------------------------------------------------ */

/* x with a (n,n) x = b, by elimination; b becomes x. */
static void solve(double *a, double *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) {
            const double f = a[j * n + i] / a[i * n + i];
            for (int64_t k = i; k < n; k++) a[j * n + k] -= f * a[i * n + k];
            b[j] -= f * b[i];
        }
    for (int64_t i = n - 1; i >= 0; i--) {
        for (int64_t k = i + 1; k < n; k++) b[i] -= a[i * n + k] * b[k];
        b[i] /= a[i * n + i];
    }
}

/* From the last input to the first: where would this input's weight be best if it and all before it could still be any
 * real number? Round that. The inputs 0 .. j solve G_ee d_e = -G_el d_l, l being the later ones. */
static void naive_rounding(problem *p, int64_t lane) {
    const int64_t K = p->rows.inputs;
    double *d = MEMORY(double, K), *a = MEMORY(double, K * K), *b = MEMORY(double, K);
    for (int64_t j = K - 1; j >= 0; j--) {
        const int64_t n = j + 1, at = j * QK_LANES + lane;
        for (int64_t i = 0; i < n; i++) {
            b[i] = 0;
            for (int64_t k = n; k < K; k++) b[i] -= p->gram[i * K + k] * d[k];
            for (int64_t k = 0; k < n; k++) a[i * n + k] = p->gram[i * K + k];
        }
        solve(a, b, n);
        const int64_t scale = scale_at(p, lane, j);
        const double best = nearbyint((p->target[at] + b[j]) / p->scale[scale]) + p->zp[scale];
        p->rows.q[at] = clip(best, p->lo[at], p->hi[at]);
        d[j] = weight_of(p, lane, j) - p->target[at];
    }
    free(b);
    free(a);
    free(d);
}

static void rounding_follows_its_definition(void) {
    for (int w = 0; w < FAST; w++)
        for (int around = 0; around < 3; around++) {
            const uint64_t seed = (uint64_t)(w * 10 + around);
            const int64_t K = widths[w], count = K > 9 && lanes_used[w] > 3 ? 3 : lanes_used[w];
            problem p = exact_problem(seed, count, K, around), naive = exact_problem(seed, count, K, around);
            for (int64_t i = 0; i < count; i++) naive_rounding(&naive, i);
            gptq(&p);
            CHECK_SAME(p.rows.q, naive.rows.q, K * QK_LANES);
            check_consistent(&p);
            problem_free(naive);
            problem_free(p);
        }
}

/* There are more inputs than a strip has: each line of L' (w - target) is made as small as its integer allows. */
static void rounding_goes_from_strip_to_strip(void) {
    for (int w = FAST; w < WIDTHS; w++)
        for (int around = 0; around < 3; around++) {
            const int64_t K = widths[w];
            problem p = exact_problem((uint64_t)around, lanes_used[w], K, around);
            problem naive = exact_problem((uint64_t)around, lanes_used[w], K, around);
            for (int64_t lane = 0; lane < p.count; lane++)
                for (int64_t j = K - 1; j >= 0; j--) {
                    const int64_t at = j * QK_LANES + lane, scale = scale_at(&p, lane, j);
                    double best = naive.target[at];
                    for (int64_t i = j + 1; i < K; i++)
                        best -= p.factor[i * K + j] * (weight_of(&naive, lane, i) - naive.target[i * QK_LANES + lane]);
                    best = nearbyint(best / naive.scale[scale]) + naive.zp[scale];
                    naive.rows.q[at] = clip(best, naive.lo[at], naive.hi[at]);
                }
            gptq(&p);
            check_equal(p.rows.q, naive.rows.q, K * QK_LANES);
            check_consistent(&p);
            for (int64_t at = 0; at < K * QK_LANES; at++) /* the slope where it ended */
                CHECK(p.residual[at] == (float)slope_of(&p, at % QK_LANES, at / QK_LANES));
            problem_free(naive);
            problem_free(p);
        }
}

static void rounding_in_float32_reaches_the_same_error(void) {
    double reached = 0, expected = 0;
    int64_t differ = 0, integers = 0;
    for (int w = 0; w < FAST; w++)
        for (int around = 0; around < 3; around++) {
            const uint64_t seed = (uint64_t)(w * 10 + around);
            const int64_t K = widths[w], count = K > 9 ? 2 : QK_LANES;
            problem p = real_problem(seed, count, K, around), naive = real_problem(seed, count, K, around);
            gptq(&p);
            check_consistent(&p);
            for (int64_t lane = 0; lane < count; lane++) {
                naive_rounding(&naive, lane);
                reached += error_of(&p, lane);
                expected += error_of(&naive, lane);
            }
            for (int64_t at = 0; at < K * QK_LANES; at++) differ += p.rows.q[at] != naive.rows.q[at];
            integers += K * count;
            problem_free(naive);
            problem_free(p);
        }
    CHECK(differ * 200 <= integers);
    CHECK(fabs(reached - expected) <= 1e-3 * expected);
}

/* ---- lanes ----------------------------------------------------------------------------------- */

static void solve_both(problem *p) {
    gptq(p);
    set_residual(p);
    descend(p, 20);
}

/* Each lane of a full problem, solved with no other lane in use. */
static void a_lane_does_not_depend_on_the_others(void) {
    const int64_t K = 130;
    problem full = exact_problem(5, QK_LANES, K, 2);
    solve_both(&full);
    for (int64_t lane = 0; lane < QK_LANES; lane++) {
        problem alone = exact_problem(5, QK_LANES, K, 2);
        for (int64_t at = 0; at < K * QK_LANES; at++) {
            const int64_t other = at % QK_LANES;
            if (other == lane) continue;
            alone.scale[other] = 1;
            alone.zp[other] = alone.target[at] = alone.lo[at] = alone.hi[at] = alone.rows.q[at] = 0;
        }
        solve_both(&alone);
        for (int64_t at = 0; at < K * QK_LANES; at++)
            CHECK(alone.rows.q[at] == (at % QK_LANES == lane ? full.rows.q[at] : 0));
        problem_free(alone);
    }
    problem_free(full);
}

/* As an overflow would leave it: what such a lane becomes does not matter, its neighbours are what they are. */
static void a_lane_of_nan_leaves_the_others_alone(void) {
    const int64_t K = 130, bad = 9;
    problem sound = exact_problem(6, QK_LANES, K, 2), ill = exact_problem(6, QK_LANES, K, 2);
    for (int64_t k = 0; k < K; k++) ill.target[k * QK_LANES + bad] = NAN;
    solve_both(&sound);
    solve_both(&ill);
    for (int64_t at = 0; at < K * QK_LANES; at++) CHECK(at % QK_LANES == bad || ill.rows.q[at] == sound.rows.q[at]);
    problem_free(ill);
    problem_free(sound);
}

/* ---- tiny ranges ------------------------------------------------------------------------------ */

static void uncorrelated_inputs_are_solved_exactly(void) {
    for (uint64_t seed = 0; seed < 30; seed++) {
        const int64_t K = 5, count = 4;
        double best[4];
        problem p = real_problem(seed, count, K, 1);
        for (int64_t i = 0; i < K * K; i++) {
            if (i / K != i % K) p.gram[i] = 0;
            p.factor[i] = sqrtf(p.gram[i]);
        }
        set_residual(&p);
        for (int64_t lane = 0; lane < count; lane++) best[lane] = brute_force(&p, lane);
        descend(&p, 10);
        for (int64_t lane = 0; lane < count; lane++) CHECK_CLOSE(error_of(&p, lane), best[lane], 1e-12);
        gptq(&p);
        for (int64_t lane = 0; lane < count; lane++) CHECK_CLOSE(error_of(&p, lane), best[lane], 1e-12);
        problem_free(p);
    }
}

/* Neither solver is exact on correlated inputs; together they find the best point most of the time. */
static void tiny_boxes_are_mostly_solved(void) {
    enum { PROBLEMS = 25, COUNT = 4 };
    int exact = 0;
    for (uint64_t seed = 0; seed < PROBLEMS; seed++) {
        problem p = real_problem(seed, COUNT, 6, 0);
        double best[COUNT], rounded[COUNT];
        for (int64_t lane = 0; lane < COUNT; lane++) best[lane] = brute_force(&p, lane);
        gptq(&p);
        for (int64_t lane = 0; lane < COUNT; lane++) rounded[lane] = error_of(&p, lane);
        set_residual(&p);
        descend(&p, 100);
        for (int64_t lane = 0; lane < COUNT; lane++) {
            const double descended = error_of(&p, lane);
            CHECK(rounded[lane] >= best[lane] * (1 - 1e-9));
            CHECK(descended >= best[lane] * (1 - 1e-9) && descended <= rounded[lane] + slack_of(&p, lane));
            exact += descended <= best[lane] * (1 + 1e-9);
        }
        problem_free(p);
    }
    CHECK(exact > PROBLEMS * COUNT / 2);
}

QK_TESTS(QK_TEST(descent_follows_its_definition), QK_TEST(descent_in_float32_reaches_the_same_error),
         QK_TEST(descent_never_makes_a_lane_worse), QK_TEST(descent_ends_where_no_single_step_helps),
         QK_TEST(inputs_that_are_always_zero_stay), QK_TEST(rounding_follows_its_definition),
         QK_TEST(rounding_goes_from_strip_to_strip), QK_TEST(rounding_in_float32_reaches_the_same_error),
         QK_TEST(a_lane_does_not_depend_on_the_others), QK_TEST(a_lane_of_nan_leaves_the_others_alone),
         QK_TEST(uncorrelated_inputs_are_solved_exactly), QK_TEST(tiny_boxes_are_mostly_solved))
