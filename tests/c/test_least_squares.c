/* The finetuned integers of a layer, judged on the rows themselves. */
#include "base/blas.h"
#include "finetune/row_choice.h"
#include "reference.h"

/* A layer whose target is a random float layer plus noise, and its quantized start: weights rounded to nearest on a
 * coarse grid, an integer bias. */
typedef struct {
    qk_geometry geometry;
    qk_row_choice choice;
    qk_layer *layer;
    qk_pool *pool;
    qk_tensor x, y;
    float *weight, *weight_scale, *bias, *bias_scale;
    int32_t *weight_q, *weight_zp;
    qk_quantized_layer start;
    /* the result's memory */
    int32_t *new_weight, *new_bias;
} fixture;

static int64_t rows_of(const fixture *f) { return f->geometry.groups * f->geometry.outputs; }

static void make_target(fixture *f, qk_random *r) {
    const qk_geometry *g = &f->geometry;
    const int64_t K = g->inputs, rows = rows_of(f), inputs = g->groups * K, positions = ref_positions(g, &f->x);
    float *xs = MEMORY(float, positions * inputs), *y = (float *)f->y.data;
    for (int64_t sample = 0; sample < f->x.dims[0]; sample++) {
        ref_inputs(g, &f->x, sample, xs);
        for (int64_t p = 0; p < positions; p++)
            for (int64_t o = 0; o < rows; o++) {
                double sum = f->bias[o] + qk_uniform(r, -0.05, 0.05);
                for (int64_t k = 0; k < K; k++)
                    sum += (double)f->weight[o * K + k] * xs[p * inputs + o / g->outputs * K + k];
                y[sample * positions * rows + (g->spatial ? o * positions + p : p * rows + o)] = (float)sum;
            }
    }
    free(xs);
}

static fixture fixture_new(const ref_case *c, uint64_t seed, int threads) {
    const qk_geometry *g = &c->geometry;
    const int64_t rows = g->groups * g->outputs, K = g->inputs;
    qk_random r = {seed};
    int64_t dims[QK_MAX_DIMS];
    memcpy(dims, c->x_dims, sizeof dims);
    dims[0] = 12;
    fixture f = {.geometry = *g,
                 .pool = qk_pool_new(threads),
                 .choice = {.samples = 12, .max_rows = 600, .holdout = 3},
                 .x = ref_tensor(&r, QK_F32, c->x_ndim, dims),
                 .weight = qk_floats(&r, rows * K, -1, 1),
                 .weight_scale = MEMORY(float, rows),
                 .weight_zp = MEMORY(int32_t, rows),
                 .weight_q = MEMORY(int32_t, rows * K),
                 .bias = qk_floats(&r, rows, -1, 1),
                 .bias_scale = MEMORY(float, rows),
                 .new_weight = MEMORY(int32_t, rows * K),
                 .new_bias = MEMORY(int32_t, rows)};
    f.y = ref_target(&r, g, &f.x);
    for (int64_t o = 0; o < rows; o++) { /* a quantized bias is on its grid */
        f.bias_scale[o] = 0.001f;
        f.bias[o] = f.bias_scale[o] * rintf(f.bias[o] / f.bias_scale[o]);
    }
    make_target(&f, &r);
    for (int64_t o = 0; o < rows; o++) {
        f.weight_scale[o] = 0.12f + 0.01f * (float)(o % 5);
        f.weight_zp[o] = (int32_t)(o % 3) - 1;
        for (int64_t i = o * K; i < (o + 1) * K; i++) {
            f.weight_q[i] = (int32_t)rintf(f.weight[i] / f.weight_scale[o]) + f.weight_zp[o];
            if (f.weight_q[i] > 7) f.weight_q[i] = 7;
            if (f.weight_q[i] < -8) f.weight_q[i] = -8;
        }
    }
    f.start = (qk_quantized_layer){.weight = f.weight,
                                   .weight_q = f.weight_q,
                                   .weight_scale = f.weight_scale,
                                   .weight_zp = f.weight_zp,
                                   .qmin = -8,
                                   .qmax = 7,
                                   .bias = f.bias,
                                   .bias_scale = f.bias_scale,
                                   .bias_qmin = -30000,
                                   .bias_qmax = 30000};
    CHECK(qk_layer_new(&f.layer, g, &f.choice, true) == QK_OK);
    CHECK(qk_layer_feed(f.layer, &f.x, &f.y, f.pool) == QK_OK);
    CHECK(qk_layer_flush(f.layer, f.pool) == QK_OK);
    return f;
}

static void fixture_free(fixture *f) {
    qk_layer_free(f->layer);
    qk_pool_free(f->pool);
    ref_free(&f->x);
    ref_free(&f->y);
    void *arrays[] = {f->weight,   f->weight_scale, f->bias,       f->bias_scale,
                      f->weight_q, f->weight_zp,    f->new_weight, f->new_bias};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static const double dampings[] = {1e-4, 1e-2};

static qk_least_squares_options options_of(qk_box box, bool update_bias) {
    return (qk_least_squares_options){
        .box = box, .update_bias = update_bias, .max_sweeps = 20, .damping = dampings, .damping_count = 2};
}

static qk_status solve(fixture *f, const qk_least_squares_options *options, qk_least_squares_result *result) {
    *result = (qk_least_squares_result){.weight_q = f->new_weight, .bias_q = f->new_bias};
    return qk_least_squares(f->layer, &f->start, options, f->pool, result);
}

/* The mean over one set's rows of |W^ x + b - y|^2. */
static double naive_error(const fixture *f, const int32_t *weight_q, const double *bias, qk_set set) {
    const qk_geometry *g = &f->geometry;
    const int64_t K = g->inputs, rows = rows_of(f), inputs = g->groups * K, positions = ref_positions(g, &f->x);
    float *xs = MEMORY(float, positions * inputs), *ys = MEMORY(float, positions * rows);
    int64_t *chosen = MEMORY(int64_t, positions), *order = MEMORY(int64_t, positions), fitted, count = 0;
    double sum = 0;
    for (int64_t sample = 0; sample < f->x.dims[0]; sample++) {
        ref_inputs(g, &f->x, sample, xs);
        ref_outputs(g, &f->y, sample, ys);
        const int64_t n = qk_choose_rows(&f->choice, sample, positions, chosen, order, &fitted);
        for (int64_t i = set == QK_FITTED ? 0 : fitted; i < (set == QK_FITTED ? fitted : n); i++, count++)
            for (int64_t o = 0; o < rows; o++) {
                double error = bias[o] - ys[chosen[i] * rows + o];
                for (int64_t k = 0; k < K; k++)
                    error += (double)f->weight_scale[o] * (weight_q[o * K + k] - f->weight_zp[o]) *
                             xs[chosen[i] * inputs + o / g->outputs * K + k];
                sum += error * error;
            }
    }
    free(order);
    free(chosen);
    free(ys);
    free(xs);
    return sum / (double)count;
}

/* Matrix, matrices, a matrix of several blocks of lanes, 1-D, 3x3, grouped, depthwise, depth multiplier. */
static const int some_cases[] = {0, 1, 2, 3, 5, 11, 12, 14};
enum { SOME_CASES = sizeof some_cases / sizeof *some_cases };

/* Every claim of a result, checked against the rows. */
static void check_result(const fixture *f, const qk_least_squares_options *o, const qk_least_squares_result *r) {
    const int64_t K = f->geometry.inputs, rows = rows_of(f);
    double *before = MEMORY(double, rows), *after = MEMORY(double, rows);
    for (int64_t i = 0; i < rows; i++) {
        before[i] = after[i] = f->bias[i];
        if (o->update_bias) after[i] = (double)f->bias_scale[i] * r->bias_q[i];
    }
    for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
        CHECK(fabs(r->before[set] - naive_error(f, f->weight_q, before, (qk_set)set)) <= 1e-4 * r->before[set]);
        CHECK(fabs(r->after[set] - naive_error(f, r->weight_q, after, (qk_set)set)) <= 1e-4 * r->before[set]);
    }
    CHECK((r->improved > 0) == (r->after[QK_HELD_OUT] < r->before[QK_HELD_OUT]));
    CHECK((r->improved > 0) == (r->candidate != QK_START));
    CHECK(r->after[QK_HELD_OUT] <= r->before[QK_HELD_OUT]);
    for (int64_t i = 0; i < rows * K; i++) {
        const int32_t q = r->weight_q[i];
        CHECK(q >= f->start.qmin && q <= f->start.qmax);
        if (o->box == QK_BOX_FLOOR_CEIL) {
            const double real = f->weight[i] / f->weight_scale[i / K] + f->weight_zp[i / K];
            CHECK(fabs(q - real) < 1.0001 || q == f->start.qmin || q == f->start.qmax);
        }
    }
    free(before);
    free(after);
}

static void results_are_what_they_claim(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int kind = 0; kind < 4; kind++) {
            fixture f = fixture_new(&ref_cases[some_cases[i]], (uint64_t)kind, 1);
            const qk_least_squares_options o = options_of(kind & 1 ? QK_BOX_FREE : QK_BOX_FLOOR_CEIL, kind & 2);
            qk_least_squares_result r;
            CHECK(solve(&f, &o, &r) == QK_OK);
            check_result(&f, &o, &r);
            fixture_free(&f);
        }
}

/* ---- the same by obvious loops --------------------------------------------------------------- */

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

static void round_successively(row_problem *p) {
    const int64_t K = p->K;
    double *l = MEMORY(double, K * K), *target = MEMORY(double, K), *d = MEMORY(double, K);
    memcpy(l, p->gram, (size_t)(K * K) * sizeof *l);
    memcpy(target, p->cross, (size_t)K * sizeof *target);
    CHECK(qk_cholesky(l, K));
    qk_cholesky_solve(target, 1, l, K);
    for (int64_t j = K - 1; j >= 0; j--) {
        double carried = 0;
        for (int64_t i = j + 1; i < K; i++) carried += l[i * K + j] * d[i];
        p->q[j] = rint((target[j] - carried / l[j * K + j]) / p->scale) + p->zp;
        p->q[j] = fmin(fmax(p->q[j], p->lo[j]), p->hi[j]);
        d[j] = weight_of(p, j) - target[j];
    }
    free(d);
    free(target);
    free(l);
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
            p.lo[k] = o->box == QK_BOX_FREE ? -8 : fmin(fmax(floor_q, -8), 7);
            p.hi[k] = o->box == QK_BOX_FREE ? 7 : fmin(fmax(floor_q + 1, -8), 7);
            p.q[k] = f->weight_q[row * K + k];
        }
        if (tried >= 0 && tried % 2) round_successively(&p);
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
            const qk_least_squares_options o = options_of(kind & 1 ? QK_BOX_FREE : QK_BOX_FLOOR_CEIL, kind & 2);
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

static void coarse_weights_improve(void) {
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1); /* 3x3, K = 27 */
        const qk_least_squares_options o = options_of(kind ? QK_BOX_FREE : QK_BOX_FLOOR_CEIL, true);
        qk_least_squares_result r;
        CHECK(solve(&f, &o, &r) == QK_OK);
        CHECK(r.improved > 0);
        CHECK(r.after[QK_HELD_OUT] < 0.8 * r.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

/* The target wants every weight 1.6 steps higher than its float value: out of AdaRound's box, inside of AdaQuant's. */
static void only_the_free_box_leaves_floor_and_ceil(void) {
    for (int box = QK_BOX_FLOOR_CEIL; box <= QK_BOX_FREE; box++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1);
        const int64_t K = f.geometry.inputs, weights = rows_of(&f) * K;
        for (int64_t i = 0; i < weights; i++) {
            const float scale = f.weight_scale[i / K];
            f.weight[i] -= 1.6f * scale;
            f.weight_q[i] = (int32_t)fmaxf(rintf(f.weight[i] / scale) + (float)f.weight_zp[i / K], -8);
        }
        const qk_least_squares_options o = options_of((qk_box)box, true);
        qk_least_squares_result r;
        int64_t outside = 0;
        CHECK(solve(&f, &o, &r) == QK_OK);
        check_result(&f, &o, &r);
        for (int64_t i = 0; i < weights; i++) {
            const double real = f.weight[i] / f.weight_scale[i / K] + f.weight_zp[i / K];
            outside += real > f.start.qmin && fabs(r.weight_q[i] - real) > 1.0001;
        }
        CHECK(box == QK_BOX_FREE ? outside > weights / 4 : outside == 0);
        fixture_free(&f);
    }
}

static void the_start_is_kept_when_nothing_is_better(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    const int64_t rows = rows_of(&f), K = f.geometry.inputs;
    for (int64_t i = 0; i < rows * K; i++) { /* weights on the grid, and a target that they meet exactly */
        f.weight[i] = f.weight_scale[i / K] * (float)(f.weight_q[i] - f.weight_zp[i / K]);
    }
    float *y = (float *)f.y.data;
    const float *x = f.x.data;
    for (int64_t p = 0; p < f.x.dims[0]; p++)
        for (int64_t o = 0; o < rows; o++) {
            double sum = f.bias[o];
            for (int64_t k = 0; k < K; k++) sum += (double)f.weight[o * K + k] * x[p * K + k];
            y[p * rows + o] = (float)sum;
        }
    qk_layer_free(f.layer);
    CHECK(qk_layer_new(&f.layer, &f.geometry, &f.choice, true) == QK_OK);
    CHECK(qk_layer_feed(f.layer, &f.x, &f.y, f.pool) == QK_OK);
    CHECK(qk_layer_flush(f.layer, f.pool) == QK_OK);
    const qk_least_squares_options o = options_of(QK_BOX_FREE, false);
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_OK);
    CHECK_SAME(r.weight_q, f.weight_q, rows * K);
    fixture_free(&f);
}

static void the_bias_takes_up_the_mean_error(void) {
    fixture f = fixture_new(&ref_cases[5], 2, 1);
    const int64_t rows = rows_of(&f);
    qk_least_squares_options o = options_of(QK_BOX_FLOOR_CEIL, true);
    o.damping_count = 0; /* leaves the bias alone to move */
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_OK);
    CHECK(r.improved > 0 && r.candidate == QK_BIAS_ONLY);
    CHECK_SAME(r.weight_q, f.weight_q, rows * f.geometry.inputs);
    check_result(&f, &o, &r);
    for (int64_t i = 0; i < rows; i++) { /* one step of the integer bias either way is worse on the fitted rows */
        const int32_t old = (int32_t)rintf(f.bias[i] / f.bias_scale[i]);
        if (r.bias_q[i] == old) continue; /* kept: the held-out rows preferred it */
        double bias[16], errors[3];
        for (int step = -1; step <= 1; step++) {
            for (int64_t k = 0; k < rows; k++) bias[k] = (double)f.bias_scale[k] * (r.bias_q[k] + (k == i ? step : 0));
            errors[step + 1] = naive_error(&f, r.weight_q, bias, QK_FITTED);
        }
        CHECK(errors[1] <= errors[0] + 1e-8 && errors[1] <= errors[2] + 1e-8);
    }
    fixture_free(&f);
}

static void a_bias_that_may_not_move_does_not(void) {
    for (int kind = 0; kind < 3; kind++) {
        fixture f = fixture_new(&ref_cases[5], 3, 1);
        if (kind == 1) f.start.bias_scale = NULL;
        if (kind == 2) f.start.bias = NULL;
        const qk_least_squares_options o = options_of(QK_BOX_FLOOR_CEIL, kind != 0);
        qk_least_squares_result r;
        for (int64_t i = 0; i < rows_of(&f); i++) f.new_bias[i] = 12345;
        CHECK(solve(&f, &o, &r) == QK_OK);
        for (int64_t i = 0; i < rows_of(&f); i++) CHECK(r.bias_q[i] == 12345);
        CHECK(r.after[QK_HELD_OUT] <= r.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

static void threads_do_not_change_a_bit(void) {
    for (int i = 0; i < REF_CASES; i++) {
        fixture one = fixture_new(&ref_cases[i], 1, 1);
        const qk_least_squares_options o = options_of(QK_BOX_FREE, true);
        qk_least_squares_result a, b;
        CHECK(solve(&one, &o, &a) == QK_OK);
        for (int threads = 2; threads <= 3; threads++) {
            fixture many = fixture_new(&ref_cases[i], 1, threads);
            CHECK(solve(&many, &o, &b) == QK_OK);
            CHECK_SAME(a.weight_q, b.weight_q, rows_of(&one) * one.geometry.inputs);
            CHECK_SAME(a.bias_q, b.bias_q, rows_of(&one));
            CHECK_SAME(a.before, b.before, 2);
            CHECK_SAME(a.after, b.after, 2);
            CHECK_SAME(a.power, b.power, 2);
            CHECK(a.candidate == b.candidate && a.improved == b.improved);
            fixture_free(&many);
        }
        fixture_free(&one);
    }
}

/* A bias far beyond its grid, the largest integers of which float32 does not hold. */
static void a_saturated_bias_stays_saturated(void) {
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    for (int64_t i = 0; i < rows_of(&f); i++) f.bias_scale[i] = 1e-11f;
    f.start.bias_qmin = INT32_MIN;
    f.start.bias_qmax = INT32_MAX;
    const qk_least_squares_options o = options_of(QK_BOX_FREE, true);
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_OK);
    for (int64_t i = 0; i < rows_of(&f); i++) CHECK(r.bias_q[i] == (f.bias[i] < 0 ? INT32_MIN : INT32_MAX));
    fixture_free(&f);
}

static bool stop_at_second_call(void *user) { return ++*(int *)user == 2; }

static void the_callback_can_cancel(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    int calls = 0;
    qk_least_squares_options o = options_of(QK_BOX_FREE, true);
    o.cancelled = stop_at_second_call;
    o.user = &calls;
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_E_CANCELLED);
    CHECK(calls == 2);
    fixture_free(&f);
}

static void too_little_data_is_refused(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    qk_layer_free(f.layer);
    f.choice.holdout = 0;
    const qk_least_squares_options o = options_of(QK_BOX_FREE, true);
    qk_least_squares_result r;
    CHECK(qk_layer_new(&f.layer, &f.geometry, &f.choice, true) == QK_OK);
    CHECK(qk_layer_feed(f.layer, &f.x, &f.y, f.pool) == QK_OK);
    CHECK(qk_layer_flush(f.layer, f.pool) == QK_OK);
    CHECK(solve(&f, &o, &r) == QK_E_NO_ROWS);
    fixture_free(&f);
}

static void nan_in_the_data_is_refused(void) {
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_new(&ref_cases[0], 1, 1);
        qk_layer_free(f.layer);
        *(float *)(kind ? f.y.data : f.x.data) = kind ? NAN : INFINITY;
        const qk_least_squares_options o = options_of(QK_BOX_FREE, true);
        qk_least_squares_result r;
        CHECK(qk_layer_new(&f.layer, &f.geometry, &f.choice, true) == QK_OK);
        CHECK(qk_layer_feed(f.layer, &f.x, &f.y, f.pool) == QK_OK);
        CHECK(qk_layer_flush(f.layer, f.pool) == QK_OK);
        CHECK(solve(&f, &o, &r) == QK_E_NONFINITE);
        fixture_free(&f);
    }
}

static qk_status solve_attempt(void *context) {
    const qk_least_squares_options o = options_of(QK_BOX_FREE, true);
    qk_least_squares_result r;
    return solve(context, &o, &r);
}

static void the_solver_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[11], 1, 1);
    qk_refuse_each_allocation(solve_attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(results_are_what_they_claim), QK_TEST(the_best_candidate_of_each_row_wins),
         QK_TEST(coarse_weights_improve), QK_TEST(only_the_free_box_leaves_floor_and_ceil),
         QK_TEST(the_start_is_kept_when_nothing_is_better), QK_TEST(the_bias_takes_up_the_mean_error),
         QK_TEST(a_bias_that_may_not_move_does_not), QK_TEST(threads_do_not_change_a_bit),
         QK_TEST(a_saturated_bias_stays_saturated), QK_TEST(the_callback_can_cancel),
         QK_TEST(too_little_data_is_refused), QK_TEST(nan_in_the_data_is_refused),
         QK_TEST(the_solver_may_run_out_of_memory))
