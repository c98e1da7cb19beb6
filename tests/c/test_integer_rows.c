/* The two integer solvers against loops that follow their definitions, and against every point of tiny boxes. */
#include "finetune/integer_rows.h"

#include "base/blas.h"
#include "qk_test.h"

/* A block of rows with a random quadratic w G w' - 2 w c' and its minimum `target` (target G = c). */
typedef struct {
    qk_integer_rows rows;
    double *gram, *factor, *cross, *target, *scratch;
    float *scale;
    int32_t *zp, *lo, *hi;
} problem;

static problem problem_new(uint64_t seed, int64_t m, int64_t K, int32_t box) {
    qk_random r = {seed};
    problem p = {.gram = MEMORY(double, K * K),
                 .factor = MEMORY(double, K * K),
                 .cross = MEMORY(double, m * K),
                 .target = MEMORY(double, m * K),
                 .scratch = MEMORY(double, 2 * m * K),
                 .scale = qk_floats(&r, m, 0.05f, 0.2f),
                 .zp = MEMORY(int32_t, m),
                 .lo = MEMORY(int32_t, m * K),
                 .hi = MEMORY(int32_t, m * K)};
    double *a = MEMORY(double, K * K); /* inputs that share a part: a badly conditioned G, as real layers have */
    for (int64_t i = 0; i < K * K; i++) a[i] = qk_uniform(&r, -1, 1) + 0.3 * qk_uniform(&r, 0, 1);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) {
            p.gram[i * K + j] = i == j ? 0.1 : 0;
            for (int64_t k = 0; k < K; k++)
                p.gram[i * K + j] += (a[i * K + k] + 0.5) * (a[j * K + k] + 0.5) / (double)K;
        }
    free(a);
    memcpy(p.factor, p.gram, (size_t)(K * K) * sizeof *p.factor);
    CHECK(qk_cholesky(p.factor, K));
    p.rows = (qk_integer_rows){.count = m,
                               .inputs = K,
                               .scale = p.scale,
                               .zp = p.zp,
                               .lo = p.lo,
                               .hi = p.hi,
                               .q = MEMORY(int32_t, m * K),
                               .w = MEMORY(double, m * K)};
    for (int64_t i = 0; i < m * K; i++) {
        if (i % K == 0) p.zp[i / K] = (int32_t)qk_random_below(&r, 11) - 5;
        p.target[i] = qk_uniform(&r, -1, 1);
        p.lo[i] = (int32_t)floor(p.target[i] / p.scale[i / K]) + p.zp[i / K] - box;
        p.hi[i] = p.lo[i] + 1 + 2 * box;
        p.rows.q[i] = p.lo[i] + (int32_t)qk_random_below(&r, 2);
        p.rows.w[i] = (double)p.scale[i / K] * (p.rows.q[i] - p.zp[i / K]);
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < K; j++)
            for (int64_t k = 0; k < K; k++) p.cross[i * K + j] += p.target[i * K + k] * p.gram[k * K + j];
    return p;
}

static void problem_free(problem p) {
    void *arrays[] = {p.gram, p.factor, p.cross, p.target, p.scratch, p.scale, p.zp, p.lo, p.hi, p.rows.q, p.rows.w};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* (w - target) G (w - target)' of one row. */
static double error_of(const problem *p, int64_t row, const double *w) {
    const int64_t K = p->rows.inputs;
    const double *t = p->target + row * K;
    double error = 0;
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) error += (w[i] - t[i]) * p->gram[i * K + j] * (w[j] - t[j]);
    return error;
}

static double clip(double x, double lo, double hi) { return x < lo ? lo : x > hi ? hi : x; }

static void check_consistent(const problem *p) {
    const int64_t K = p->rows.inputs;
    for (int64_t i = 0; i < p->rows.count * K; i++) {
        CHECK(p->rows.q[i] >= p->lo[i] && p->rows.q[i] <= p->hi[i]);
        CHECK(p->rows.w[i] == (double)p->scale[i / K] * (p->rows.q[i] - p->zp[i / K]));
    }
}

/* ---- coordinate descent ---------------------------------------------------------------------- */

static void naive_descent(const problem *p, int sweeps, int32_t *q) {
    const int64_t K = p->rows.inputs;
    for (int64_t row = 0; row < p->rows.count; row++)
        for (int sweep = 0; sweep < sweeps; sweep++)
            for (int64_t j = 0; j < K; j++) {
                double slope = -p->cross[row * K + j]; /* half the derivative by w_j */
                for (int64_t k = 0; k < K; k++)
                    slope += p->scale[row] * (double)(q[row * K + k] - p->zp[row]) * p->gram[k * K + j];
                const double best = nearbyint(q[row * K + j] - slope / (p->scale[row] * p->gram[j * K + j]));
                q[row * K + j] = (int32_t)clip(best, p->lo[row * K + j], p->hi[row * K + j]);
            }
}

static const int64_t widths[] = {1, 2, 9, 63, 64, 65, 130}; /* around the blocks of 64 columns */
enum { WIDTHS = 7, NARROW_WIDTHS = 6 };

static void descent_follows_its_definition(void) {
    for (int w = 0; w < WIDTHS; w++)
        for (int32_t box = 0; box < 3; box++)
            for (int sweeps = 0; sweeps < 4; sweeps++) {
                const int64_t m = 3, K = widths[w];
                problem p = problem_new((uint64_t)(w * 10 + box), m, K, box);
                int32_t *q = MEMORY(int32_t, m * K);
                memcpy(q, p.rows.q, (size_t)(m * K) * sizeof *q);
                naive_descent(&p, sweeps, q);
                qk_coordinate_descent(&p.rows, p.gram, p.cross, sweeps, p.scratch);
                CHECK_SAME(p.rows.q, q, m * K);
                check_consistent(&p);
                free(q);
                problem_free(p);
            }
}

static void descent_never_makes_a_row_worse(void) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        problem p = problem_new(seed, 4, 70, 3);
        double before[4];
        for (int sweep = 0; sweep < 6; sweep++) {
            for (int64_t i = 0; i < 4; i++) before[i] = error_of(&p, i, p.rows.w + i * 70);
            qk_coordinate_descent(&p.rows, p.gram, p.cross, 1, p.scratch);
            for (int64_t i = 0; i < 4; i++) CHECK(error_of(&p, i, p.rows.w + i * 70) <= before[i] * (1 + 1e-12));
        }
        problem_free(p);
    }
}

static void descent_ends_where_no_single_step_helps(void) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        const int64_t K = 12;
        problem p = problem_new(seed, 2, K, 2);
        qk_coordinate_descent(&p.rows, p.gram, p.cross, 1000, p.scratch);
        for (int64_t i = 0; i < 2 * K; i++) {
            double *w = p.rows.w + i / K * K;
            const double error = error_of(&p, i / K, w), kept = p.rows.w[i];
            for (int32_t q = p.lo[i]; q <= p.hi[i]; q++) {
                p.rows.w[i] = (double)p.scale[i / K] * (q - p.zp[i / K]);
                CHECK(error_of(&p, i / K, w) >= error * (1 - 1e-9));
            }
            p.rows.w[i] = kept;
        }
        problem_free(p);
    }
}

static void inputs_that_are_always_zero_stay(void) {
    const int64_t K = 80, dead = 67;
    problem p = problem_new(1, 2, K, 2);
    for (int64_t k = 0; k < K; k++) p.gram[dead * K + k] = p.gram[k * K + dead] = 0;
    for (int64_t i = 0; i < 2; i++) p.cross[i * K + dead] = 0;
    const int32_t before[] = {p.rows.q[dead], p.rows.q[K + dead]};
    qk_coordinate_descent(&p.rows, p.gram, p.cross, 20, p.scratch);
    CHECK(p.rows.q[dead] == before[0] && p.rows.q[K + dead] == before[1]);
    check_consistent(&p);
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

/* From the last column to the first: where would this column be best if it and all before it could still be any real
 * number? Round that. The columns 0 .. j solve G_ee d_e = -G_el d_l, l being the later ones. */
static void naive_rounding(const problem *p, int64_t row, int32_t *q) {
    const int64_t K = p->rows.inputs;
    double *d = MEMORY(double, K), *a = MEMORY(double, K * K), *b = MEMORY(double, K);
    for (int64_t j = K - 1; j >= 0; j--) {
        const int64_t n = j + 1;
        for (int64_t i = 0; i < n; i++) {
            b[i] = 0;
            for (int64_t k = n; k < K; k++) b[i] -= p->gram[i * K + k] * d[k];
            for (int64_t k = 0; k < n; k++) a[i * n + k] = p->gram[i * K + k];
        }
        solve(a, b, n);
        const double best = nearbyint((p->target[row * K + j] + b[j]) / p->scale[row]) + p->zp[row];
        q[j] = (int32_t)clip(best, p->lo[row * K + j], p->hi[row * K + j]);
        d[j] = p->scale[row] * (double)(q[j] - p->zp[row]) - p->target[row * K + j];
    }
    free(b);
    free(a);
    free(d);
}

static void rounding_follows_its_definition(void) {
    for (int w = 0; w < NARROW_WIDTHS; w++)
        for (int32_t box = 0; box < 3; box++) {
            const int64_t m = 2, K = widths[w];
            problem p = problem_new((uint64_t)(w * 10 + box), m, K, box);
            int32_t *q = MEMORY(int32_t, m * K);
            for (int64_t i = 0; i < m; i++) naive_rounding(&p, i, q + i * K);
            qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
            CHECK_SAME(p.rows.q, q, m * K);
            check_consistent(&p);
            free(q);
            problem_free(p);
        }
}

/* ---- tiny boxes ------------------------------------------------------------------------------ */

/* The least error over all points of one row's box. */
static double brute_force(problem *p, int64_t row) {
    const int64_t K = p->rows.inputs;
    double w[8], best = INFINITY;
    int32_t q[8];
    for (int64_t j = 0; j < K; j++) q[j] = p->lo[row * K + j];
    for (int64_t j = 0; j < K;) {
        for (int64_t k = 0; k < K; k++) w[k] = (double)p->scale[row] * (q[k] - p->zp[row]);
        best = fmin(best, error_of(p, row, w));
        for (j = 0; j < K && ++q[j] > p->hi[row * K + j]; j++) q[j] = p->lo[row * K + j]; /* the next point */
    }
    return best;
}

static void uncorrelated_inputs_are_solved_exactly(void) {
    for (uint64_t seed = 0; seed < 30; seed++) {
        const int64_t K = 5;
        problem p = problem_new(seed, 1, K, 1);
        for (int64_t i = 0; i < K * K; i++)
            if (i / K != i % K) p.gram[i] = p.factor[i] = 0;
        for (int64_t i = 0; i < K; i++) {
            p.factor[i * K + i] = sqrt(p.gram[i * K + i]);
            p.cross[i] = p.target[i] * p.gram[i * K + i];
        }
        const double best = brute_force(&p, 0);
        qk_coordinate_descent(&p.rows, p.gram, p.cross, 10, p.scratch);
        CHECK_CLOSE(error_of(&p, 0, p.rows.w), best, 1e-12);
        qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
        CHECK_CLOSE(error_of(&p, 0, p.rows.w), best, 1e-12);
        problem_free(p);
    }
}

/* Neither solver is exact on correlated inputs; together they find the best point most of the time. */
static void tiny_boxes_are_mostly_solved(void) {
    enum { PROBLEMS = 100 };
    int exact = 0;
    for (uint64_t seed = 0; seed < PROBLEMS; seed++) {
        const int64_t K = 6;
        problem p = problem_new(seed, 1, K, 0);
        const double best = brute_force(&p, 0);
        qk_successive_rounding(&p.rows, p.target, p.factor, p.scratch);
        const double rounded = error_of(&p, 0, p.rows.w);
        qk_coordinate_descent(&p.rows, p.gram, p.cross, 100, p.scratch);
        const double descended = error_of(&p, 0, p.rows.w);
        CHECK(rounded >= best * (1 - 1e-9));
        CHECK(descended >= best * (1 - 1e-9) && descended <= rounded * (1 + 1e-9));
        exact += descended <= best * (1 + 1e-9);
        problem_free(p);
    }
    CHECK(exact > PROBLEMS / 2);
}

QK_TESTS(QK_TEST(descent_follows_its_definition), QK_TEST(descent_never_makes_a_row_worse),
         QK_TEST(descent_ends_where_no_single_step_helps), QK_TEST(inputs_that_are_always_zero_stay),
         QK_TEST(rounding_follows_its_definition), QK_TEST(uncorrelated_inputs_are_solved_exactly),
         QK_TEST(tiny_boxes_are_mostly_solved))
