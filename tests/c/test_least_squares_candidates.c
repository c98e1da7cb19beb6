/* The candidates of least squares, one row at a time, by loops in float64. */
#include "base/blas.h"
#include "least_squares_cases.h"
#include "solvers/closest_point.h"
#include "solvers/coordinate_descent.h"
#include "solvers/gptq.h"

/* One group's centred moments of a set. */
typedef struct {
    double *gram, *cross, *mean_x, *mean_y, *power; /* of all groups */
} moments;

static moments moments_of(const fixture *f, qk_set set) {
    const int64_t K = f->geometry.inputs, inputs = f->geometry.groups * K, rows = rows_of(f);
    moments m = {MEMORY(double, inputs * K), MEMORY(double, rows * K), MEMORY(double, inputs), MEMORY(double, rows),
                 MEMORY(double, rows)};
    qk_layer_moments(f->layer, set, m.gram, m.cross, m.mean_x, m.mean_y, m.power);
    for (int64_t i = 0; i < inputs * K; i++) m.gram[i] -= m.mean_x[i / K] * m.mean_x[i / K / K * K + i % K];
    for (int64_t i = 0; i < rows * K; i++)
        m.cross[i] -= m.mean_y[i / K] * m.mean_x[i / K / f->geometry.outputs * K + i % K];
    for (int64_t o = 0; o < rows; o++) m.power[o] -= m.mean_y[o] * m.mean_y[o];
    return m;
}

static void moments_free(moments m) {
    void *arrays[] = {m.gram, m.cross, m.mean_x, m.mean_y, m.power};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* The problem of one row: integers q, and what a candidate minimises, w G w' - 2 w c'. */
typedef struct {
    int64_t K;
    double scale, zp, *gram, *cross, *lo, *hi, *q;
} row_problem;

static double weight_of(const row_problem *p, int64_t k) { return p->scale * (p->q[k] - p->zp); }

static void descend(row_problem *p, int sweeps) {
    bool moved = true;
    for (int sweep = 0; sweep < sweeps && moved; sweep++) {
        moved = false;
        for (int64_t j = 0; j < p->K; j++) {
            const double before = p->q[j];
            double slope = -p->cross[j];
            for (int64_t k = 0; k < p->K; k++) slope += weight_of(p, k) * p->gram[k * p->K + j];
            p->q[j] = rint(p->q[j] - slope / (p->scale * p->gram[j * p->K + j]));
            p->q[j] = fmin(fmax(p->q[j], p->lo[j]), p->hi[j]);
            moved |= p->q[j] != before;
        }
    }
}

/* Cholesky factor and solution of what a candidate minimises. */
typedef struct {
    double *l, *target, *d, *best, least;
    int looked_at;
} rounding;

static double line_of(const row_problem *p, const rounding *r, int64_t j) {
    double line = 0;
    for (int64_t i = j; i < p->K; i++) line += r->l[i * p->K + j] * r->d[i];
    return line;
}

static void set(row_problem *p, rounding *r, int64_t j, double q) {
    p->q[j] = q;
    r->d[j] = weight_of(p, j) - r->target[j];
}

/* The integer of the range that makes line j smallest, except for those that are `done`. NaN: there is none. */
static double nearest(row_problem *p, rounding *r, int64_t j, const bool *done) {
    double least = INFINITY, best = NAN;
    for (double q = p->lo[j]; q <= p->hi[j]; q++) {
        set(p, r, j, q);
        const double line = fabs(line_of(p, r, j));
        if (done[(int)(q - p->lo[j])] || !(line < least)) continue;
        least = line;
        best = q;
    }
    return best;
}

static void visit(row_problem *p, rounding *r, int64_t j, double cost, int most) {
    bool done[16] = {false};
    if (j < 0) {
        r->least = cost;
        memcpy(r->best, p->q, (size_t)p->K * sizeof *p->q);
        return;
    }
    for (double q = nearest(p, r, j, done); !isnan(q) && r->looked_at++ < most; q = nearest(p, r, j, done)) {
        set(p, r, j, q);
        const double line = line_of(p, r, j), further = cost + line * line;
        if (further >= r->least) return;
        visit(p, r, j - 1, further, most);
        done[(int)(q - p->lo[j])] = true;
    }
}

/* Many inputs: the first branch alone, which is GPTQ. */
static void round_weights(row_problem *p) {
    const int64_t K = p->K;
    rounding r = {MEMORY(double, K * K), MEMORY(double, K), MEMORY(double, K), MEMORY(double, K), INFINITY, 0};
    memcpy(r.l, p->gram, (size_t)(K * K) * sizeof *r.l);
    memcpy(r.target, p->cross, (size_t)K * sizeof *r.target);
    CHECK(qk_cholesky(r.l, K));
    qk_cholesky_solve(r.target, 1, r.l, K);
    visit(p, &r, K - 1, 0, K <= QK_FEW_INPUTS ? QK_MOST_NODES : (int)K);
    memcpy(p->q, r.best, (size_t)K * sizeof *p->q);
    free(r.l);
    free(r.target);
    free(r.d);
    free(r.best);
}

/* The held-out error of a row's integers, with the best bias or the start's. */
static double judge(const fixture *f, const moments *m, const row_problem *p, int64_t row, bool best_bias) {
    const int64_t K = p->K, group = row / f->geometry.outputs;
    const moments *held_out = &m[QK_HELD_OUT];
    double bias = m[QK_FITTED].mean_y[row], error = held_out->power[row], mean = -held_out->mean_y[row];
    for (int64_t k = 0; k < K; k++) bias -= weight_of(p, k) * m[QK_FITTED].mean_x[group * K + k];
    bias = best_bias ? f->bias_scale[row] * rint(bias / f->bias_scale[row]) : f->bias[row];
    for (int64_t k = 0; k < K; k++) {
        mean += weight_of(p, k) * held_out->mean_x[group * K + k];
        error -= 2 * weight_of(p, k) * held_out->cross[row * K + k];
        for (int64_t j = 0; j < K; j++)
            error += weight_of(p, k) * held_out->gram[(group * K + k) * K + j] * weight_of(p, j);
    }
    return error + (bias + mean) * (bias + mean);
}

/* Tries every candidate on one row; `best` becomes the integers of the best one. Returns its held-out error. */
static double naive_row(const fixture *f, const qk_least_squares_options *o, const moments *m, int64_t row,
                        double *best) {
    const int64_t K = f->geometry.inputs, group = row / f->geometry.outputs;
    const double *mu = m[QK_FITTED].mean_x + group * K;
    row_problem p = {K,
                     f->weight_scale[row],
                     f->weight_zp[row],
                     MEMORY(double, K * K),
                     MEMORY(double, K),
                     MEMORY(double, K),
                     MEMORY(double, K),
                     MEMORY(double, K)};
    double least = INFINITY;
    for (int tried = -2; tried < 2 * o->damping_count; tried++) { /* start, bias, then both solvers by damping */
        const double damping = tried < 0 ? 0 : o->damping[tried / 2];
        double trace = 0;
        for (int64_t i = 0; i < K * K; i++) {
            p.gram[i] = m[QK_FITTED].gram[group * K * K + i] + (o->update_bias ? 0 : mu[i / K] * mu[i % K]);
            if (i / K == i % K) trace += p.gram[i];
        }
        for (int64_t k = 0; k < K; k++) {
            const double lam = damping * trace / (double)K, real = f->weight[row * K + k];
            p.gram[k * K + k] += lam;
            p.cross[k] = m[QK_FITTED].cross[row * K + k] + lam * real;
            if (!o->update_bias) p.cross[k] += (m[QK_FITTED].mean_y[row] - f->bias[row]) * mu[k];
            const double floor_q = floor(f->weight[row * K + k] / f->weight_scale[row]) + p.zp;
            p.lo[k] = o->rounding == QK_ANY_INTEGER ? -8 : fmin(fmax(floor_q, -8), 7);
            p.hi[k] = o->rounding == QK_ANY_INTEGER ? 7 : fmin(fmax(floor_q + 1, -8), 7);
            p.q[k] = f->weight_q[row * K + k];
        }
        if (tried >= 0 && tried % 2) round_weights(&p);
        if (tried >= 0) descend(&p, o->max_sweeps);
        const double error = judge(f, m, &p, row, o->update_bias && tried > -2);
        if (!(error < least)) continue;
        least = error;
        memcpy(best, p.q, (size_t)K * sizeof *best);
    }
    free(p.gram);
    free(p.cross);
    free(p.lo);
    free(p.hi);
    free(p.q);
    return least;
}

/* In float64. The core's float32 may decide otherwise where two integers or two candidates are about equally good. */
static void the_best_candidate_of_each_row_wins(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int kind = 0; kind < 4; kind++) {
            if (some_cases[i] == 2 && kind < 3) continue; /* the loops are slow */
            fixture f = fixture_new(&ref_cases[some_cases[i]], (uint64_t)kind, 1);
            const int64_t K = f.geometry.inputs, rows = rows_of(&f);
            const qk_least_squares_options o = options_of(kind & 1 ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL, kind & 2);
            const moments m[] = {moments_of(&f, QK_FITTED), moments_of(&f, QK_HELD_OUT)};
            qk_least_squares_result r;
            CHECK(solve(&f, &o, &r) == QK_OK);
            double *best = MEMORY(double, K), error = 0;
            int64_t differ = 0;
            for (int64_t row = 0; row < rows; row++) {
                error += naive_row(&f, &o, m, row, best);
                for (int64_t k = 0; k < K; k++) differ += best[k] != r.weight_q[row * K + k];
            }
            CHECK(fabs(r.after[QK_HELD_OUT] - error) <= 0.01 * error);
            CHECK(differ <= 1 + rows * K / 200);
            free(best);
            moments_free(m[QK_FITTED]);
            moments_free(m[QK_HELD_OUT]);
            fixture_free(&f);
        }
}

/* Two of the ten blocks of 32 outputs say which candidates the others are tried with. */
static void large_layers_try_most_outputs_with_the_best_candidates_alone(void) {
    const ref_case many = {"many outputs", {.groups = 1, .inputs = 40, .outputs = 300}, 3, {12, 40, 40}};
    const double three[] = {1e-4, 1e-2, 3};
    for (int kind = 0; kind < 2; kind++) {
        qk_least_squares_options o = options_of(kind ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL, true);
        o.damping = three;
        o.damping_count = 3;
        int32_t *weights[3];
        qk_least_squares_result r[3];
        for (int run = 0; run < 3; run++) { /* all outputs; a part, on one thread and on three */
            fixture f = fixture_new(&many, (uint64_t)kind, run == 2 ? 3 : 1);
            o.part_from = run == 0 ? INT64_MAX : 0;
            CHECK(solve(&f, &o, &r[run]) == QK_OK);
            weights[run] = MEMORY(int32_t, 300 * 40);
            memcpy(weights[run], f.new_weight, 300 * 40 * sizeof *f.new_weight);
            fixture_free(&f);
        }
        int64_t differ = 0;
        for (int64_t i = 0; i < 300 * 40; i++) differ += weights[0][i] != weights[1][i];
        CHECK(differ > 0);
        CHECK(r[0].after[QK_HELD_OUT] <= r[1].after[QK_HELD_OUT]);
        CHECK(r[1].before[QK_HELD_OUT] - r[1].after[QK_HELD_OUT] >
              0.9 * (r[0].before[QK_HELD_OUT] - r[0].after[QK_HELD_OUT]));
        CHECK(memcmp(weights[1], weights[2], 300 * 40 * sizeof **weights) == 0);
        CHECK(r[1].after[QK_FITTED] == r[2].after[QK_FITTED]);
        for (int run = 0; run < 3; run++) free(weights[run]);
    }
}

/* The second damping adds next to nothing to the first, so the third is not tried, on one thread or on three. */
static void larger_layers_end_with_a_damping_that_adds_little(void) {
    const ref_case many = {"many outputs", {.groups = 1, .inputs = 40, .outputs = 300}, 3, {12, 40, 40}};
    const double three[] = {1, 0.999, 1e-4};
    const int64_t work = 300 * 40 * 40, part_from[] = {INT64_MAX, INT64_MAX, work, work};
    const int counts[] = {3, 2, 3, 3};
    int32_t *weights[4];
    for (int run = 0; run < 4; run++) {
        fixture f = fixture_new(&many, 0, run == 3 ? 3 : 1);
        qk_least_squares_options o = options_of(QK_FLOOR_OR_CEIL, true);
        qk_least_squares_result r;
        o.damping = three;
        o.damping_count = counts[run];
        o.part_from = part_from[run];
        CHECK(solve(&f, &o, &r) == QK_OK);
        weights[run] = MEMORY(int32_t, 300 * 40);
        memcpy(weights[run], f.new_weight, 300 * 40 * sizeof *f.new_weight);
        fixture_free(&f);
    }
    CHECK(memcmp(weights[0], weights[1], 300 * 40 * sizeof **weights) != 0);
    for (int run = 2; run < 4; run++) CHECK(memcmp(weights[run], weights[1], 300 * 40 * sizeof **weights) == 0);
    for (int run = 0; run < 4; run++) free(weights[run]);
}

/* Damped so much that no weight moves from where such a solution is: the others need not try, bias alone is as good.
 * Where biases stay weights make up for them. */
static void large_layers_stop_where_a_part_of_the_outputs_gains_nothing(void) {
    const ref_case many = {"many outputs", {.groups = 1, .inputs = 40, .outputs = 300}, 3, {12, 40, 40}};
    const double strong[] = {1e9, 1e10}, usual[] = {1e-4, 1e-2};
    for (int moves = 0; moves < 2; moves++) {
        qk_least_squares_options o = options_of(QK_FLOOR_OR_CEIL, !moves);
        fixture f = fixture_new(&many, 0, 1);
        qk_least_squares_result all, part;
        o.damping = strong;
        CHECK(solve(&f, &o, &all) == QK_OK);
        int32_t *settled = MEMORY(int32_t, 300 * 40);
        memcpy(settled, f.new_weight, 300 * 40 * sizeof *settled);
        f.start.weight_q = settled;
        o.damping = moves ? usual : strong;
        CHECK(solve(&f, &o, &all) == QK_OK);
        CHECK(!all.pilot_alone);
        o.part_from = 0;
        CHECK(solve(&f, &o, &part) == QK_OK);
        CHECK(part.pilot_alone == !moves);
        CHECK((part.candidate == QK_BIAS_ONLY) == !moves);
        free(settled);
        CHECK(moves || fabs(part.after[QK_HELD_OUT] - all.after[QK_HELD_OUT]) <= 0.01 * all.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

QK_TESTS(QK_TEST(the_best_candidate_of_each_row_wins),
         QK_TEST(large_layers_try_most_outputs_with_the_best_candidates_alone),
         QK_TEST(larger_layers_end_with_a_damping_that_adds_little),
         QK_TEST(large_layers_stop_where_a_part_of_the_outputs_gains_nothing))
