/* The two integer solvers against loops that follow their definitions, and against every point of tiny boxes.
 *
 * The solvers calculate in float32. Where two integers are about equally good they may take another one than a loop in
 * float64, and what follows differs too. So there are two kinds of problems: real ones, where the error reached is
 * compared, and ones whose numbers are small multiples of powers of two, where float32 makes no error and no two
 * integers are about equally good: there every integer must be the same. */
#include "finetune/integer_rows.h"

#include "base/blas.h"
#include "qk_test.h"

enum { SCALE_BLOCK = 5 }; /* inputs that share a scale in problems with an odd seed; in the others all do */

/* Some lanes with a random quadratic (w - target) G (w - target)', w the weights. The other lanes are as least squares
 * leaves them: scale 1, everything else 0. */
typedef struct {
    int64_t count; /* lanes in use */
    qk_integer_rows rows;
    float *gram, *factor, *target, *residual, *scratch;
    float *scale, *zp, *lo, *hi;
} problem;

static problem problem_new(uint64_t seed, int64_t count, int64_t K) {
    const int64_t scales = K / SCALE_BLOCK + 1;
    problem p = {.count = count,
                 .gram = MEMORY(float, K * K),
                 .factor = MEMORY(float, K * K),
                 .target = MEMORY(float, K * QK_LANES),
                 .residual = MEMORY(float, K * QK_LANES),
                 .scratch = MEMORY(float, 2 * K * QK_LANES),
                 .scale = MEMORY(float, scales * QK_LANES),
                 .zp = MEMORY(float, scales * QK_LANES),
                 .lo = MEMORY(float, K * QK_LANES),
                 .hi = MEMORY(float, K * QK_LANES)};
    for (int64_t i = 0; i < scales * QK_LANES; i++) p.scale[i] = 1;
    p.rows = (qk_integer_rows){.inputs = K,
                               .scale = p.scale,
                               .zp = p.zp,
                               .lo = p.lo,
                               .hi = p.hi,
                               .q = MEMORY(float, K * QK_LANES),
                               .scale_block = seed % 2 ? SCALE_BLOCK : 0};
    return p;
}

/* Where the scale and zero point of input j stand. */
static int64_t scale_at(const problem *p, int64_t lane, int64_t j) {
    return (p->rows.scale_block ? j / SCALE_BLOCK * QK_LANES : 0) + lane;
}

static void problem_free(problem p) {
    void *arrays[] = {p.gram, p.factor, p.target, p.residual, p.scratch, p.scale, p.zp, p.lo, p.hi, p.rows.q};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static double weight_of(const problem *p, int64_t lane, int64_t j) {
    const int64_t at = scale_at(p, lane, j);
    return (double)p->scale[at] * ((double)p->rows.q[j * QK_LANES + lane] - p->zp[at]);
}

/* Half the derivative of the error by w_j. */
static double slope_of(const problem *p, int64_t lane, int64_t j) {
    const int64_t K = p->rows.inputs;
    double slope = 0;
    for (int64_t k = 0; k < K; k++)
        slope += (weight_of(p, lane, k) - p->target[k * QK_LANES + lane]) * p->gram[k * K + j];
    return slope;
}

static double error_of(const problem *p, int64_t lane) {
    double error = 0;
    for (int64_t j = 0; j < p->rows.inputs; j++)
        error += slope_of(p, lane, j) * (weight_of(p, lane, j) - p->target[j * QK_LANES + lane]);
    return error;
}

static void set_residual(problem *p) {
    for (int64_t i = 0; i < p->rows.inputs * QK_LANES; i++)
        p->residual[i] = (float)slope_of(p, i % QK_LANES, i / QK_LANES);
}

/* A box of 2 + 2 box integers around each target, zero points, and a start inside of the box. */
static void set_box(problem *p, qk_random *r, int box) {
    for (int64_t lane = 0; lane < p->count; lane++) {
        for (int64_t b = 0; b <= p->rows.inputs / SCALE_BLOCK; b++)
            p->zp[b * QK_LANES + lane] = (float)qk_random_below(r, 11) - 5;
        for (int64_t at = lane; at < p->rows.inputs * QK_LANES; at += QK_LANES) {
            const int64_t scale = scale_at(p, lane, at / QK_LANES);
            p->lo[at] = floorf(p->target[at] / p->scale[scale]) + p->zp[scale] - (float)box;
            p->hi[at] = p->lo[at] + 1 + 2 * (float)box;
            p->rows.q[at] = p->lo[at] + (float)qk_random_below(r, 2);
        }
    }
}

static problem real_problem(uint64_t seed, int64_t count, int64_t K, int box) {
    qk_random r = {seed};
    problem p = problem_new(seed, count, K);
    double *a = MEMORY(double, K * K), *gram = MEMORY(double, K * K);
    /* inputs that share a part: a badly conditioned G, as real layers have */
    for (int64_t i = 0; i < K * K; i++) a[i] = qk_uniform(&r, -1, 1) + 0.3 * qk_uniform(&r, 0, 1);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) {
            gram[i * K + j] = i == j ? 0.1 : 0;
            for (int64_t k = 0; k < K; k++) gram[i * K + j] += (a[i * K + k] + 0.5) * (a[j * K + k] + 0.5) / (double)K;
        }
    for (int64_t i = 0; i < K * K; i++) p.gram[i] = (float)gram[i];
    CHECK(qk_cholesky(gram, K));
    for (int64_t i = 0; i < K * K; i++) p.factor[i] = (float)gram[i];
    for (int64_t lane = 0; lane < count; lane++) {
        for (int64_t b = 0; b <= K / SCALE_BLOCK; b++) p.scale[b * QK_LANES + lane] = (float)qk_uniform(&r, 0.05, 0.2);
        for (int64_t k = 0; k < K; k++) p.target[k * QK_LANES + lane] = (float)qk_uniform(&r, -1, 1);
    }
    set_box(&p, &r, box);
    set_residual(&p);
    free(gram);
    free(a);
    return p;
}

/* L has ones on its diagonal and some 2 and -2 below it, scales are 1/8 and 1/4, targets odd multiples of 1/64. Then
 * every residual and every sum that is carried on is a small multiple of 1/64, and what successive rounding rounds is
 * an odd multiple of 1/16: never halfway between two integers. A quotient of coordinate descent is a fraction with a
 * small denominator: halfway, or far from it. */
static problem exact_problem(uint64_t seed, int64_t count, int64_t K, int box) {
    qk_random r = {seed};
    problem p = problem_new(seed, count, K);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j <= i; j++) {
            const bool set = qk_random_below(&r, (uint64_t)K + 2) < 3;
            p.factor[i * K + j] = i == j ? 1 : set ? (qk_random_below(&r, 2) ? 2.0f : -2.0f) : 0;
        }
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++)
            for (int64_t k = 0; k <= (i < j ? i : j); k++)
                p.gram[i * K + j] += p.factor[i * K + k] * p.factor[j * K + k];
    for (int64_t lane = 0; lane < count; lane++) {
        for (int64_t b = 0; b <= K / SCALE_BLOCK; b++) p.scale[b * QK_LANES + lane] = b % 2 ? 0.25f : 0.125f;
        for (int64_t k = 0; k < K; k++) p.target[k * QK_LANES + lane] = (2 * (float)qk_random_below(&r, 65) - 65) / 64;
    }
    set_box(&p, &r, box);
    set_residual(&p);
    return p;
}

static float clip(double x, float lo, float hi) { return (float)(x < lo ? lo : x > hi ? hi : x); }

/* Whole numbers within their boxes; unused lanes as they were. */
static void check_consistent(const problem *p) {
    for (int64_t at = 0; at < p->rows.inputs * QK_LANES; at++) {
        const float q = p->rows.q[at];
        CHECK(q == rintf(q) && q >= p->lo[at] && q <= p->hi[at]);
        if (at % QK_LANES >= p->count) CHECK(q == 0 && p->target[at] == 0);
    }
}

static float *copy_of(const float *x, int64_t n) {
    float *copy = MEMORY(float, n);
    memcpy(copy, x, (size_t)n * sizeof *copy);
    return copy;
}

static const int64_t widths[] = {1, 2, 9, 63, 64, 65, 130}; /* around the blocks of 64 inputs */
static const int64_t lanes_used[] = {32, 1, 31, 7, 32, 5, 3};
enum { WIDTHS = 7 };

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

static void descent_follows_its_definition(void) {
    for (int w = 0; w < WIDTHS; w++)
        for (int box = 0; box < 3; box++)
            for (int sweeps = 0; sweeps < 5; sweeps++) {
                const uint64_t seed = (uint64_t)(w * 10 + box);
                problem p = exact_problem(seed, lanes_used[w], widths[w], box);
                problem naive = exact_problem(seed, lanes_used[w], widths[w], box);
                naive_descent(&naive, sweeps);
                qk_coordinate_descent(&p.rows, p.gram, p.residual, sweeps, p.scratch);
                CHECK_SAME(p.rows.q, naive.rows.q, widths[w] * QK_LANES);
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
        for (int box = 0; box < 3; box++) {
            const uint64_t seed = (uint64_t)(w * 10 + box);
            const int64_t K = widths[w];
            problem p = real_problem(seed, lanes_used[w], K, box), naive = real_problem(seed, lanes_used[w], K, box);
            naive_descent(&naive, 4);
            qk_coordinate_descent(&p.rows, p.gram, p.residual, 4, p.scratch);
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
            qk_coordinate_descent(&p.rows, p.gram, p.residual, 1, p.scratch);
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
        qk_coordinate_descent(&p.rows, p.gram, p.residual, 1000, p.scratch);
        check_that_no_single_step_helps(&p, 1);
        qk_coordinate_descent(&exact.rows, exact.gram, exact.residual, 1000, exact.scratch);
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
    qk_coordinate_descent(&p.rows, p.gram, p.residual, 20, p.scratch);
    CHECK_SAME(p.rows.q + dead * QK_LANES, before + dead * QK_LANES, QK_LANES);
    CHECK(memcmp(p.rows.q, before, (size_t)(K * QK_LANES) * sizeof *before) != 0);
    check_consistent(&p);
    free(before);
    problem_free(p);
}

/* ---- successive rounding --------------------------------------------------------------------- */

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
    for (int w = 0; w < WIDTHS; w++)
        for (int box = 0; box < 3; box++) {
            const uint64_t seed = (uint64_t)(w * 10 + box);
            const int64_t K = widths[w], count = K > 9 && lanes_used[w] > 3 ? 3 : lanes_used[w];
            problem p = exact_problem(seed, count, K, box), naive = exact_problem(seed, count, K, box);
            for (int64_t i = 0; i < count; i++) naive_rounding(&naive, i);
            for (int64_t i = 0; i < 2 * K * QK_LANES; i++) p.scratch[i] = -77; /* it need not be zeroed */
            qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
            CHECK_SAME(p.rows.q, naive.rows.q, K * QK_LANES);
            check_consistent(&p);
            problem_free(naive);
            problem_free(p);
        }
}

static void rounding_in_float32_reaches_the_same_error(void) {
    double reached = 0, expected = 0;
    int64_t differ = 0, integers = 0;
    for (int w = 0; w < WIDTHS; w++)
        for (int box = 0; box < 3; box++) {
            const uint64_t seed = (uint64_t)(w * 10 + box);
            const int64_t K = widths[w], count = K > 9 ? 2 : QK_LANES;
            problem p = real_problem(seed, count, K, box), naive = real_problem(seed, count, K, box);
            qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
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
    qk_successive_rounding(&p->rows, p->target, p->factor, p->scratch);
    set_residual(p);
    qk_coordinate_descent(&p->rows, p->gram, p->residual, 20, p->scratch);
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

/* ---- tiny boxes ------------------------------------------------------------------------------ */

/* The least error over all points of one lane's box. */
static double brute_force(const problem *p, int64_t lane) {
    const int64_t K = p->rows.inputs, last = K * QK_LANES;
    problem tried = *p;
    tried.rows.q = copy_of(p->lo, last);
    double best = INFINITY;
    for (int64_t at = lane; at < last;) {
        best = fmin(best, error_of(&tried, lane));
        for (at = lane; at < last && ++tried.rows.q[at] > p->hi[at]; at += QK_LANES) /* the next point */
            tried.rows.q[at] = p->lo[at];
    }
    free(tried.rows.q);
    return best;
}

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
        qk_coordinate_descent(&p.rows, p.gram, p.residual, 10, p.scratch);
        for (int64_t lane = 0; lane < count; lane++) CHECK_CLOSE(error_of(&p, lane), best[lane], 1e-12);
        qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
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
        qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
        for (int64_t lane = 0; lane < COUNT; lane++) rounded[lane] = error_of(&p, lane);
        set_residual(&p);
        qk_coordinate_descent(&p.rows, p.gram, p.residual, 100, p.scratch);
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
         QK_TEST(rounding_in_float32_reaches_the_same_error), QK_TEST(a_lane_does_not_depend_on_the_others),
         QK_TEST(a_lane_of_nan_leaves_the_others_alone), QK_TEST(uncorrelated_inputs_are_solved_exactly),
         QK_TEST(tiny_boxes_are_mostly_solved))
