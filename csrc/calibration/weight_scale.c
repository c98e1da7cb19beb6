/* CalibMethod.MinOutputMSE: the weight scale with the least error of the layer's output; CalibMethod.MinMSE: with the
 * least error of the weight itself, as if all inputs were independent and of the same size.
 *
 * MinMax lets one outlier set the scale, often in a channel whose input hardly varies, where clipping it costs nothing.
 * With D = W^ - W the mean squared error of output o is d_o G d_o', G the Gram matrix of the float inputs (centred when
 * a bias takes up the mean), so every scale can be judged without running the model. A scale that several outputs share
 * is judged by the sum of their errors, each divided by its own power w_o G w_o' plus the mean power: the layers behind
 * can make a faint channel loud, so it counts more than its power says, yet no loud channel may be given up for it.
 *
 * The search goes from coarse to fine. A small weight's error jumps from one factor to the next, so many are tried; a
 * large one's is smooth, so few are, and one scale for all outputs is chosen by a part of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "calibration/weight_error.h"
#include "kernels/kernels.h"

/* A stage of the search: factors 2^exponent, relative to the best one so far; 1 is the best before the first. */
typedef struct {
    int count;
    double exponents[25];
} stage;

/* For small weights. */
static const stage thorough[] = {
    {25, {0,     -0.25, -0.5,  -0.75, -1,    -1.25, -1.5,  -1.75, -2,    -2.25, -2.5,  -2.75, -3,
          -3.25, -3.5,  -3.75, -4,    -4.25, -4.5,  -4.75, -5,    -5.25, -5.5,  -5.75, -6}},
    {6, {0.1875, 0.125, 0.0625, -0.0625, -0.125, -0.1875}},
    {0, {0}},
};
/* For large ones: each stage halves the distance to the best. */
static const stage bracketing[] = {
    {7, {0, -1, -2, -3, -4, -5, -6}},
    {2, {0.5, -0.5}},
    {2, {0.25, -0.25}},
    {6, {0.1875, 0.125, 0.0625, -0.0625, -0.125, -0.1875}},
    {0, {0}},
};

enum {
    MAX_FACTORS = 25,
    LARGE = 1 << 22,    /* multiply-adds of one factor: from here on few are tried */
    BLOCK = 64,         /* outputs of a task; BLAS copies the moments or rows for each product with them */
    LEAST_OUTPUTS = 64, /* of a group, that one scale for all is chosen by; or a quarter of them */
};

/* An output that is tried. */
typedef struct {
    int64_t row;
    double range; /* the largest size of its weights */
    double share; /* outputs that it stands for */
    double power; /* w G w' */
} output;

typedef struct {
    const qk_weight_error *error_of;
    const qk_scale_problem *problem;
    output *outputs; /* (groups * tried) */
    int64_t tried;   /* outputs of each group */
    const stage *stage;
    const double *lo, *hi;     /* (rows) range of each output channel's scale before the factor */
    double *error;             /* (groups * tried, MAX_FACTORS) */
    double *best, *best_error; /* (rows); entry 0 where all share one scale */
    float *scratch;            /* (threads, BLOCK, K + width) */
} search;

/* A symmetric grid with more integers below 0 than above (-8 .. 7) holds the largest weight above 0 from here on. */
static double widest_factor(const qk_grid *grid) {
    const double least = grid->qmin, most = grid->qmax;
    return grid->symmetric && -least > most ? (most - least) / (2 * most) : 1;
}

static double factor_at(const search *s, int64_t row, int index) {
    const double best = s->best[s->problem->per_channel ? row : 0];
    return fmin(widest_factor(&s->problem->grid), best * exp2(s->stage->exponents[index]));
}

static qk_affine affine_of(const search *s, int64_t row, double factor) {
    return qk_affine_from_range(s->lo[row] * factor, s->hi[row] * factor, s->problem->grid);
}

/* A block of outputs of one group. */
typedef struct {
    int64_t group, first, count;
    float *d, *scratch; /* (BLOCK, K), (BLOCK, width) */
} block;

static int64_t blocks_of(const search *s) { return s->error_of->groups * qk_ceil_div(s->tried, BLOCK); }

static block block_at(const search *s, int64_t index, int worker) {
    const int64_t K = s->error_of->inputs, width = K + qk_weight_error_width(s->error_of);
    const int64_t per_group = qk_ceil_div(s->tried, BLOCK), skipped = index % per_group * BLOCK;
    float *scratch = s->scratch + worker * BLOCK * width;
    return (block){.group = index / per_group,
                   .first = index / per_group * s->tried + skipped,
                   .count = qk_smaller(BLOCK, s->tried - skipped),
                   .d = scratch,
                   .scratch = scratch + BLOCK * K};
}

/* The output error of a block under every factor of the stage. */
static void search_task(void *context, int64_t index, int worker) {
    const search *s = context;
    const block b = block_at(s, index, worker);
    const int64_t K = s->error_of->inputs;
    for (int f = 0; f < s->stage->count; f++) {
        for (int64_t i = 0; i < b.count; i++) {
            const int64_t row = s->outputs[b.first + i].row;
            const float *w = s->problem->weight + row * K;
            float *d = b.d + i * K;
            qk_fake_quant(d, w, (size_t)K, affine_of(s, row, factor_at(s, row, f)), s->problem->grid);
            for (int64_t k = 0; k < K; k++) d[k] -= w[k];
        }
        qk_weight_errors(s->error_of, b.group, b.d, b.count, b.scratch, s->error + b.first * MAX_FACTORS + f,
                         MAX_FACTORS);
    }
}

/* The power of a block's outputs. */
static void power_task(void *context, int64_t index, int worker) {
    const search *s = context;
    const block b = block_at(s, index, worker);
    const int64_t K = s->error_of->inputs;
    double power[BLOCK];
    for (int64_t i = 0; i < b.count; i++)
        memcpy(b.d + i * K, s->problem->weight + s->outputs[b.first + i].row * K, (size_t)K * sizeof *b.d);
    qk_weight_errors(s->error_of, b.group, b.d, b.count, b.scratch, power, 1);
    for (int64_t i = 0; i < b.count; i++) s->outputs[b.first + i].power = power[i];
}

static void add_mean_power(const search *s) {
    const int64_t count = s->error_of->groups * s->tried;
    double mean = 0, shares = 0;
    for (int64_t i = 0; i < count; i++) {
        mean += s->outputs[i].share * s->outputs[i].power;
        shares += s->outputs[i].share;
    }
    for (int64_t i = 0; i < count; i++) s->outputs[i].power += mean / shares;
}

/* The best factor of each output, or of all together. Equal errors: the earlier, which clips less. */
static void pick(const search *s) {
    const int64_t count = s->error_of->groups * s->tried;
    const bool per_channel = s->problem->per_channel;
    for (int64_t first = 0; first < (per_channel ? count : 1); first++) {
        const int64_t row = per_channel ? s->outputs[first].row : 0, end = per_channel ? first + 1 : count;
        double best = s->best[row];
        for (int f = 0; f < s->stage->count; f++) {
            double error = 0;
            for (int64_t i = first; i < end; i++)
                if (s->outputs[i].power > 0)
                    error += s->outputs[i].share * s->error[i * MAX_FACTORS + f] / s->outputs[i].power;
            if (!(error < s->best_error[row])) continue;
            s->best_error[row] = error;
            best = factor_at(s, row, f);
        }
        s->best[row] = best;
    }
}

static void ranges_of_weight(const qk_scale_problem *p, int64_t rows, int64_t K, double *lo, double *hi) {
    double all_lo = 0, all_hi = 0;
    for (int64_t r = 0; r < rows; r++) {
        lo[r] = hi[r] = 0;
        for (int64_t k = 0; k < K; k++) {
            lo[r] = fmin(lo[r], p->weight[r * K + k]);
            hi[r] = fmax(hi[r], p->weight[r * K + k]);
        }
        all_lo = fmin(all_lo, lo[r]);
        all_hi = fmax(all_hi, hi[r]);
    }
    for (int64_t r = 0; r < rows && !p->per_channel; r++) {
        lo[r] = all_lo;
        hi[r] = all_hi;
    }
}

/* The largest first; of equals the one that came first. */
static int by_range(const void *left, const void *right) {
    const output *a = left, *b = right;
    if (a->range != b->range) return a->range > b->range ? -1 : 1;
    return a->row < b->row ? -1 : 1;
}

/* Half of those tried are the outputs with the largest weights, as their clipping decides; the others are spread over
 * the rest, and stand for all of it. outputs: (O) of one group; becomes (tried). */
static void choose_outputs(output *outputs, int64_t count, int64_t tried) {
    const int64_t largest = tried / 2, spread = tried - largest, rest = count - largest;
    qsort(outputs, (size_t)count, sizeof *outputs, by_range);
    for (int64_t i = 0; i < spread; i++) {
        outputs[largest + i] = outputs[largest + i * rest / spread];
        outputs[largest + i].share = (double)rest / (double)spread;
    }
}

static void set_outputs(search *s, int64_t O) {
    const int64_t K = s->error_of->inputs;
    for (int64_t g = 0; g < s->error_of->groups; g++) {
        output *outputs = s->outputs + g * s->tried;
        for (int64_t o = 0; o < O; o++) {
            const float *w = s->problem->weight + (g * O + o) * K;
            outputs[o] = (output){.row = g * O + o, .share = 1, .power = 1};
            for (int64_t k = 0; k < K; k++) outputs[o].range = fmax(outputs[o].range, fabsf(w[k]));
        }
        if (s->tried < O) choose_outputs(outputs, O, s->tried);
    }
}

static void run(search *s, int64_t rows, const stage *stages, qk_affine *affine, qk_pool *pool) {
    const int64_t scales = s->problem->per_channel ? rows : 1;
    for (int64_t r = 0; r < scales; r++) {
        s->best[r] = 1;
        s->best_error[r] = INFINITY;
    }
    for (s->stage = stages; s->stage->count > 0; s->stage++) {
        qk_pool_run(pool, search_task, s, blocks_of(s));
        pick(s);
    }
    for (int64_t r = 0; r < scales; r++) affine[r] = affine_of(s, r, s->best[r]);
}

static qk_status choose(const qk_weight_error *error_of, int64_t O, const qk_scale_problem *problem, qk_affine *affine,
                        qk_pool *pool) {
    const int64_t K = error_of->inputs, rows = error_of->groups * O, width = qk_weight_error_width(error_of);
    const bool large = (double)rows * (double)K * (double)qk_larger(width, 1) >= LARGE;
    const int64_t part = qk_larger(LEAST_OUTPUTS, O / 4);
    double *lo = QK_NEW(double, rows), *hi = QK_NEW(double, rows), *best = QK_NEW(double, rows);
    double *best_error = QK_NEW(double, rows), *error = QK_NEW(double, rows, MAX_FACTORS);
    output *outputs = QK_NEW(output, rows);
    float *scratch = QK_NEW(float, qk_pool_threads(pool), BLOCK, K + width);
    const bool ok = lo && hi && best && best_error && error && outputs && scratch;
    if (ok) {
        ranges_of_weight(problem, rows, K, lo, hi);
        search s = {.error_of = error_of, .problem = problem, .outputs = outputs, .lo = lo, .hi = hi, .error = error};
        s.tried = large && !problem->per_channel && part < O ? part : O;
        s.best = best;
        s.best_error = best_error;
        s.scratch = scratch;
        set_outputs(&s, O);
        qk_blas_enter();
        if (width > 0) {
            qk_pool_run(pool, power_task, &s, blocks_of(&s));
            add_mean_power(&s);
        }
        run(&s, rows, large ? bracketing : thorough, affine, pool);
        qk_blas_leave();
    }
    free(lo);
    free(hi);
    free(best);
    free(best_error);
    free(error);
    free(outputs);
    free(scratch);
    return ok ? QK_OK : QK_E_NOMEM;
}

qk_status qk_choose_weight_scale(const qk_layer *layer, const qk_scale_problem *problem, qk_affine *affine,
                                 qk_pool *pool) {
    qk_weight_error error_of;
    QK_TRY(qk_weight_error_init(&error_of, layer, problem->bias_free));
    const qk_status status = choose(&error_of, qk_layer_geometry(layer)->outputs, problem, affine, pool);
    qk_weight_error_destroy(&error_of);
    return status;
}

qk_status qk_choose_weight_scale_alone(const qk_scale_problem *problem, int64_t rows, int64_t inputs, qk_affine *affine,
                                       qk_pool *pool) {
    if (rows < 1 || inputs < 1) return QK_E_ARG;
    return choose(&(qk_weight_error){.groups = 1, .inputs = inputs}, rows, problem, affine, pool);
}
