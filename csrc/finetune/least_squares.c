/* Least squares over the integers: candidates solved on the fitted moments, judged on the held-out ones.
 *
 * E |W^ x + b - y|^2 is quadratic in W^ and b, so moments replace the data. Each candidate damps the Gram matrix
 * differently (shrinking towards the float weight), rounds the shifted target W* = (C + lam W)(G + lam I)^-1
 * successively, with few inputs to the closest point, then descends by coordinates. Outputs are problems of their own:
 * for each the candidate that is best on held-out rows wins, the start included. Large layers try all candidates on a
 * part of the outputs, and only the best of them on the others.
 *
 * Moments, factors, targets and the errors that are reported are float64. Candidates are sought and compared in
 * float32, as changes from the start, which are of the size of the error itself. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "finetune/integer_rows.h"
#include "finetune/layer.h"
#include "finetune/quadratic.h"
#include "finetune/weight_scales.h"

enum {
    LANE_ARRAYS = 6, /* scratch of a worker: w, change, residual, three of the solvers */
    PART = 4,        /* one of so many blocks */
    FINALISTS = 3,   /* candidates for the others */
};

typedef enum { ALL_BLOCKS, A_PART, THE_REST } extent_of_trial;

/* A candidate with its damping. */
typedef struct {
    qk_candidate candidate;
    int damping;
    double gain; /* of the blocks that it was tried on */
} attempt;

typedef struct {
    const qk_quantized_layer *start;
    const qk_least_squares_options *options;
    qk_pool *pool;
    qk_quadratic moments[2];     /* centred, by qk_set */
    qk_quadratic fixed;          /* the fitted moments with the bias fixed, where it stays */
    const qk_quadratic *solving; /* the one of them that candidates minimise */
    bool bias_free;
    int64_t rows, blocks;
    qk_candidate candidate;
    double damping;
    extent_of_trial extent;
    double *factor, *target; /* Cholesky factors (groups,K,K), W* (rows,K) */
    bool *factored;          /* (groups) */
    double *lam;             /* (groups): damping of the candidate at hand */
    float *gram, *l;         /* (groups,K,K) of `solving`, damped; of `factor` */
    float *judge;            /* (groups,K,K) held-out Gram matrix */
    /* By block, (blocks, K, QK_LANES): float weight, box, start, residual w G - c of the start, half the slope of the
     * held-out error there, the candidate at hand, the best one. */
    float *weight, *lo, *hi, *q0, *residual0, *slope, *q, *best_q;
    int64_t scales;                /* per row */
    float *scale, *zp;             /* (blocks, scales, QK_LANES) */
    double *bias_before;           /* (rows): the start's bias */
    int32_t *bias_q, *best_bias_q; /* (rows) */
    double *gain, *best_gain;      /* (rows): change of the held-out error */
    qk_candidate *winner;          /* (rows) */
    float *scratch;                /* (threads, LANE_ARRAYS, K, QK_LANES) */
    double *real, *product;        /* (threads, QK_ROW_BLOCK, K) */
    double *error[2];              /* (rows), by qk_set, of what is measured */
} solver;

/* ---- set-up ---------------------------------------------------------------------------------- */

static void solver_destroy(solver *s) {
    qk_quadratic_destroy(&s->moments[0]);
    qk_quadratic_destroy(&s->moments[1]);
    qk_quadratic_destroy(&s->fixed);
    void *arrays[] = {s->factor, s->target,  s->factored, s->lam,     s->gram,        s->l,        s->judge,
                      s->weight, s->lo,      s->hi,       s->q0,      s->residual0,   s->slope,    s->q,
                      s->best_q, s->scale,   s->zp,       s->bias_q,  s->best_bias_q, s->gain,     s->best_gain,
                      s->winner, s->scratch, s->real,     s->product, s->error[0],    s->error[1], s->bias_before};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static qk_status solver_allocate(solver *s) {
    const int64_t K = s->solving->inputs, squares = s->solving->groups * K * K, threads = qk_pool_threads(s->pool);
    float **lanes[] = {&s->weight, &s->lo, &s->hi, &s->q0, &s->residual0, &s->slope, &s->q, &s->best_q};
    float **grams[] = {&s->gram, &s->l, &s->judge};
    double **by_row[] = {&s->bias_before, &s->gain, &s->best_gain, &s->error[0], &s->error[1]};
    bool ok = true;
    for (size_t i = 0; i < sizeof lanes / sizeof *lanes; i++)
        ok &= (*lanes[i] = QK_NEW(float, s->blocks * K * QK_LANES)) != NULL;
    for (size_t i = 0; i < sizeof grams / sizeof *grams; i++) ok &= (*grams[i] = QK_NEW(float, squares)) != NULL;
    for (size_t i = 0; i < sizeof by_row / sizeof *by_row; i++) ok &= (*by_row[i] = QK_NEW(double, s->rows)) != NULL;
    s->factor = QK_NEW(double, squares);
    s->target = QK_NEW(double, s->rows * K);
    s->factored = QK_NEW(bool, s->solving->groups);
    s->lam = QK_NEW(double, s->solving->groups);
    s->scale = QK_NEW(float, s->blocks * s->scales * QK_LANES);
    s->zp = QK_NEW(float, s->blocks * s->scales * QK_LANES);
    s->bias_q = QK_NEW(int32_t, s->rows);
    s->best_bias_q = QK_NEW(int32_t, s->rows);
    s->winner = QK_NEW(qk_candidate, s->rows);
    s->scratch = QK_NEW(float, threads * LANE_ARRAYS * K * QK_LANES);
    s->real = QK_NEW(double, threads * QK_ROW_BLOCK * K);
    s->product = QK_NEW(double, threads * QK_ROW_BLOCK * K);
    ok &= s->factor && s->target && s->factored && s->lam && s->scale && s->zp && s->bias_q && s->best_bias_q &&
          s->winner && s->scratch && s->real && s->product;
    return ok ? QK_OK : QK_E_NOMEM;
}

static double clip(double q, int32_t lo, int32_t hi) { return fmin(fmax(q, lo), hi); }

/* One weight into its lane: float value, box, start. */
static void set_weight(const solver *s, int64_t row, int64_t k, int64_t at) {
    const qk_quantized_layer *l = s->start;
    const int64_t from = row * s->solving->inputs + k;
    s->weight[at] = l->weight[from];
    s->q0[at] = s->best_q[at] = (float)l->weight_q[from];
    if (s->options->box == QK_BOX_FREE) {
        s->lo[at] = (float)l->qmin;
        s->hi[at] = (float)l->qmax;
        return;
    }
    const int64_t scale = qk_scale_of(l, s->solving->inputs, from);
    const double floor_q = floor((double)(l->weight[from] / l->weight_scale[scale])) + l->weight_zp[scale];
    s->lo[at] = (float)clip(floor_q, l->qmin, l->qmax);
    s->hi[at] = (float)clip(floor_q + 1, l->qmin, l->qmax);
}

/* to (K, QK_LANES) = the lines of w G - c of a block, at the start w. */
static void slope_at_start(const qk_quadratic *q, qk_row_block block, const double *w, double *product, float *to) {
    const int64_t K = q->inputs;
    qk_dgemm(product, w, q->gram + block.group * K * K,
             (qk_gemm_shape){.m = block.count, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
    for (int64_t i = 0; i < block.count; i++)
        for (int64_t k = 0; k < K; k++)
            to[k * QK_LANES + i] = (float)(product[i * K + k] - q->cross[(block.first + i) * K + k]);
}

/* w (count, K) = scale (q - zero_point) of a block; q (rows, K). */
static void dequantize_rows(const solver *s, qk_row_block block, const int32_t *q, double *w) {
    const qk_quantized_layer *l = s->start;
    const int64_t K = s->solving->inputs;
    for (int64_t i = 0; i < block.count * K; i++) {
        const int64_t weight = block.first * K + i, scale = qk_scale_of(l, K, weight);
        w[i] = (double)l->weight_scale[scale] * (q[weight] - l->weight_zp[scale]);
    }
}

static void start_task(void *context, int64_t index, int worker) {
    solver *s = context;
    const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
    const qk_quantized_layer *l = s->start;
    const int64_t K = s->solving->inputs, at = index * K * QK_LANES;
    double *w = s->real + worker * QK_ROW_BLOCK * K, *product = s->product + worker * QK_ROW_BLOCK * K;
    float *scale = s->scale + index * s->scales * QK_LANES, *zp = s->zp + index * s->scales * QK_LANES;
    for (int64_t i = 0; i < s->scales * QK_LANES; i++) scale[i] = 1; /* of unused lanes */
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t row = block.first + i;
        for (int64_t b = 0; b < s->scales; b++) {
            scale[b * QK_LANES + i] = l->weight_scale[row * s->scales + b];
            zp[b * QK_LANES + i] = (float)l->weight_zp[row * s->scales + b];
        }
        for (int64_t k = 0; k < K; k++) set_weight(s, row, k, at + k * QK_LANES + i);
    }
    dequantize_rows(s, block, l->weight_q, w);
    slope_at_start(s->solving, block, w, product, s->residual0 + at);
    slope_at_start(&s->moments[QK_HELD_OUT], block, w, product, s->slope + at);
}

static void to_float(float *to, const double *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = (float)from[i];
}

static qk_status moments_of(const solver *s, qk_quadratic *q, const qk_layer *layer, qk_set set) {
    QK_TRY(qk_quadratic_init(q, layer, set, layer->with_target));
    return layer->with_target ? QK_OK : qk_quadratic_aim(q, s->start->weight);
}

static int32_t start_bias_q(const solver *s, int64_t row) {
    const qk_quantized_layer *l = s->start;
    return (int32_t)clip(rint(s->bias_before[row] / l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

static qk_status solver_init(solver *s, const qk_layer *layer) {
    const qk_quantized_layer *l = s->start;
    if (!layer->with_target && l->bias) return QK_E_ARG;
    for (int set = 0; set < 2; set++) {
        QK_TRY(moments_of(s, &s->moments[set], layer, (qk_set)set));
        qk_quadratic_centre(&s->moments[set]);
    }
    s->solving = &s->moments[QK_FITTED];
    s->bias_free = s->options->update_bias && l->bias && l->bias_scale;
    if (!s->bias_free) {
        QK_TRY(moments_of(s, &s->fixed, layer, QK_FITTED));
        qk_quadratic_centre(&s->fixed);
        qk_quadratic_fix_bias(&s->fixed, l->bias);
        s->solving = &s->fixed;
    }
    s->rows = s->solving->groups * s->solving->outputs;
    s->blocks = qk_row_blocks(s->solving, QK_ROW_BLOCK);
    s->scales = s->solving->inputs / qk_scale_block(l, s->solving->inputs);
    QK_TRY(solver_allocate(s));
    const int64_t squares = s->solving->groups * s->solving->inputs * s->solving->inputs;
    to_float(s->gram, s->solving->gram, squares);
    to_float(s->judge, s->moments[QK_HELD_OUT].gram, squares);
    for (int64_t r = 0; r < s->rows; r++) {
        s->bias_before[r] = l->bias ? l->bias[r] : 0;
        if (s->bias_free) s->best_bias_q[r] = start_bias_q(s, r);
    }
    qk_pool_run(s->pool, start_task, s, s->blocks);
    return QK_OK;
}

/* ---- one candidate --------------------------------------------------------------------------- */

/* Damps one group's Gram matrix: lam = damping * mean diagonal of G. For successive rounding its Cholesky factor and W*
 * too. */
static void damp_task(void *context, int64_t group, int worker) {
    (void)worker;
    solver *s = context;
    const int64_t K = s->solving->inputs, O = s->solving->outputs;
    const double *gram = s->solving->gram + group * K * K;
    double *factor = s->factor + group * K * K, trace = 0;
    for (int64_t k = 0; k < K; k++) trace += gram[k * K + k];
    const double lam = s->lam[group] = s->damping * trace / (double)K;
    for (int64_t k = 0; k < K; k++) s->gram[(group * K + k) * K + k] = (float)(gram[k * K + k] + lam);
    s->factored[group] = false;
    if (s->candidate != QK_ROUNDING_DESCENT || !(trace > 0)) return;
    memcpy(factor, gram, (size_t)(K * K) * sizeof *factor);
    for (int64_t k = 0; k < K; k++) factor[k * K + k] += lam;
    if (!qk_cholesky(factor, K)) return;
    s->factored[group] = true;
    to_float(s->l + group * K * K, factor, K * K);
    for (int64_t i = group * O * K; i < (group + 1) * O * K; i++)
        s->target[i] = s->solving->cross[i] + lam * s->start->weight[i];
    qk_cholesky_solve(s->target + group * O * K, O, factor, K);
}

/* The best bias for the weights w: b = m - w mu; as an integer. */
static int32_t best_bias(const solver *s, int64_t row, double wmu) {
    const qk_quantized_layer *l = s->start;
    const double b = s->moments[QK_FITTED].mean_y[row] - wmu;
    return (int32_t)clip(rint(b / l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

/* means[i] = w_i mu for every lane; w (K, QK_LANES). */
static void means_of(const float *w, const double *mu, int64_t K, double means[QK_LANES]) {
    for (int i = 0; i < QK_LANES; i++) means[i] = 0;
    for (int64_t k = 0; k < K; k++)
        for (int i = 0; i < QK_LANES; i++) means[i] += mu[k] * (double)w[k * QK_LANES + i];
}

/* What the candidate changes of the held-out error: d'Gd + 2 d'(G w0 - c), and the mean's square. change (K, QK_LANES):
 * w - w0. product: scratch of the same shape. */
static void judge_block(solver *s, qk_row_block block, const float *w, const float *change, const float *slope,
                        float *product) {
    const qk_quadratic *fitted = &s->moments[QK_FITTED], *held_out = &s->moments[QK_HELD_OUT];
    const int64_t K = fitted->inputs;
    double sums[QK_LANES] = {0}, means[QK_LANES], moved[QK_LANES];
    qk_sgemm(product, s->judge + block.group * K * K, change,
             (qk_gemm_shape){.m = K, .n = QK_LANES, .k = K, .lda = K, .ldb = QK_LANES, .ldc = QK_LANES});
    for (int64_t k = 0; k < K * QK_LANES; k++) sums[k % QK_LANES] += (double)(change[k] * (product[k] + 2 * slope[k]));
    means_of(w, fitted->mean_x + block.group * K, K, means);
    for (int64_t i = 0; i < block.count && s->bias_free; i++)
        s->bias_q[block.first + i] = best_bias(s, block.first + i, means[i]);
    means_of(w, held_out->mean_x + block.group * K, K, means);
    means_of(change, held_out->mean_x + block.group * K, K, moved);
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t row = block.first + i;
        const double before = s->bias_before[row] + means[i] - moved[i] - held_out->mean_y[row];
        const double bias = s->bias_free ? (double)s->start->bias_scale[row] * s->bias_q[row] : s->bias_before[row];
        const double after = bias + means[i] - held_out->mean_y[row];
        s->gain[row] = sums[i] + after * after - before * before;
    }
}

/* Where the scales of an input begin. */
static int64_t scales_at(const qk_integer_rows *rows, int64_t k) {
    return rows->scale_block > 0 ? k / rows->scale_block * QK_LANES : 0;
}

/* w = scale (q - zp); both (K, QK_LANES). */
static void values_of(const qk_integer_rows *rows, const float *q, float *w) {
    for (int64_t k = 0; k < rows->inputs; k++) {
        const float *scale = rows->scale + scales_at(rows, k), *zp = rows->zp + scales_at(rows, k);
        const int64_t at = k * QK_LANES;
        for (int i = 0; i < QK_LANES; i++) w[at + i] = scale[i] * (q[at + i] - zp[i]);
    }
}

/* What the integers at hand change of the weight: scale (q - q0). */
static void changes_of(const qk_integer_rows *rows, const float *q0, float *change) {
    for (int64_t k = 0; k < rows->inputs; k++) {
        const float *scale = rows->scale + scales_at(rows, k);
        const int64_t at = k * QK_LANES;
        for (int i = 0; i < QK_LANES; i++) change[at + i] = scale[i] * (rows->q[at + i] - q0[at + i]);
    }
}

static int64_t tried_blocks(const solver *s) {
    const int64_t part = (s->blocks + PART - 1) / PART;
    return s->extent == ALL_BLOCKS ? s->blocks : s->extent == A_PART ? part : s->blocks - part;
}

/* Of the blocks that are tried, the i-th. */
static int64_t tried_block(const solver *s, int64_t i) {
    return s->extent == ALL_BLOCKS ? i : s->extent == A_PART ? i * PART : i + i / (PART - 1) + 1;
}

static void solve_task(void *context, int64_t i_tried, int worker) {
    solver *s = context;
    const int64_t index = tried_block(s, i_tried);
    const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
    const int64_t K = s->solving->inputs, n = K * QK_LANES, at = index * n;
    float *w = s->scratch + worker * LANE_ARRAYS * n, *change = w + n, *residual = change + n, *scratch = residual + n;
    const float *gram = s->gram + block.group * K * K, lam = (float)s->lam[block.group];
    const bool descends = s->candidate == QK_DESCENT || s->candidate == QK_ROUNDING_DESCENT;
    const int64_t scale_block = s->scales > 1 ? s->start->scale_block : 0, scales = index * s->scales * QK_LANES;
    qk_integer_rows rows = {K, s->scale + scales, s->zp + scales, s->lo + at, s->hi + at, s->q + at, scale_block};
    memcpy(rows.q, s->q0 + at, (size_t)n * sizeof *rows.q);
    if (s->candidate == QK_ROUNDING_DESCENT && s->factored[block.group] && K <= QK_FEW_INPUTS) {
        for (int i = 0; i < (int)block.count; i++)
            qk_closest_point(&rows, i, s->target + (block.first + i) * K, s->factor + block.group * K * K);
    } else if (s->candidate == QK_ROUNDING_DESCENT && s->factored[block.group]) {
        float *target = scratch + 2 * n;
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < QK_LANES; i++)
                target[k * QK_LANES + i] = i < block.count ? (float)s->target[(block.first + i) * K + k] : 0;
        qk_successive_rounding(&rows, target, s->l + block.group * K * K, scratch);
    }
    if (descends) {
        values_of(&rows, s->q0 + at, w); /* at the start */
        for (int64_t j = 0; j < n; j++) residual[j] = s->residual0[at + j] + lam * (w[j] - s->weight[at + j]);
        changes_of(&rows, s->q0 + at, change);
        if (s->candidate == QK_ROUNDING_DESCENT)
            qk_sgemm(
                residual, gram, change,
                (qk_gemm_shape){
                    .m = K, .n = QK_LANES, .k = K, .lda = K, .ldb = QK_LANES, .ldc = QK_LANES, .accumulate = true});
        qk_coordinate_descent(&rows, gram, residual, s->options->max_sweeps, scratch);
    }
    values_of(&rows, rows.q, w);
    changes_of(&rows, s->q0 + at, change);
    judge_block(s, block, w, change, s->slope + at, residual);
}

/* Takes over the outputs that the candidate at hand makes better on held-out rows. The change of all that get better.
 */
static double keep_better_rows(solver *s) {
    const int64_t n = s->solving->inputs * QK_LANES, tried = tried_blocks(s);
    double gain = 0;
    for (int64_t t = 0; t < tried; t++) {
        const int64_t index = tried_block(s, t);
        const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
        for (int64_t i = 0; i < block.count; i++) {
            const int64_t row = block.first + i;
            if (s->gain[row] < 0) gain += s->gain[row];
            if (!(s->gain[row] < s->best_gain[row])) continue;
            s->best_gain[row] = s->gain[row];
            s->best_bias_q[row] = s->bias_q[row];
            s->winner[row] = s->candidate;
            for (int64_t j = index * n + i; j < (index + 1) * n; j += QK_LANES) s->best_q[j] = s->q[j];
        }
    }
    return gain;
}

static double try_candidate(solver *s, qk_candidate candidate, double damping) {
    s->candidate = candidate;
    s->damping = damping;
    qk_pool_run(s->pool, damp_task, s, s->solving->groups);
    qk_pool_run(s->pool, solve_task, s, tried_blocks(s));
    return keep_better_rows(s);
}

static bool cancelled(const qk_least_squares_options *o) { return o->cancelled && o->cancelled(o->user); }

static qk_status try_attempts(solver *s, extent_of_trial extent, attempt *attempts, int count) {
    s->extent = extent;
    for (attempt *a = attempts; a < attempts + count; a++) {
        if (cancelled(s->options)) return QK_E_CANCELLED;
        a->gain = try_candidate(s, a->candidate, s->options->damping[a->damping]);
    }
    return QK_OK;
}

/* The best first; of equals the one that came first. */
static int by_gain(const void *left, const void *right) {
    const attempt *a = left, *b = right;
    if (a->gain != b->gain) return a->gain < b->gain ? -1 : 1;
    return a->damping != b->damping ? a->damping - b->damping : (int)a->candidate - (int)b->candidate;
}

static qk_status try_all_dampings(solver *s) {
    const int count = 2 * s->options->damping_count;
    attempt *attempts = QK_NEW(attempt, count);
    if (!attempts) return QK_E_NOMEM;
    for (int i = 0; i < count; i++)
        attempts[i] = (attempt){.candidate = i % 2 ? QK_ROUNDING_DESCENT : QK_DESCENT, .damping = i / 2};
    const double work = (double)s->rows * (double)s->solving->inputs * (double)s->solving->inputs;
    const bool in_parts = work > (double)s->options->part_from && count > FINALISTS && s->blocks >= 2 * PART;
    qk_status status = try_attempts(s, in_parts ? A_PART : ALL_BLOCKS, attempts, count);
    if (in_parts && status == QK_OK) {
        qsort(attempts, (size_t)count, sizeof *attempts, by_gain);
        status = try_attempts(s, THE_REST, attempts, FINALISTS);
    }
    free(attempts);
    return status;
}

/* ---- the result ------------------------------------------------------------------------------ */

typedef struct {
    solver *s;
    const qk_least_squares_result *result;
    bool start; /* measure the start, else the result */
} measurement;

static void measure_task(void *context, int64_t index, int worker) {
    const measurement *m = context;
    solver *s = m->s;
    const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
    const int64_t K = s->solving->inputs;
    double *w = s->real + worker * QK_ROW_BLOCK * K;
    dequantize_rows(s, block, m->start ? s->start->weight_q : m->result->weight_q, w);
    for (int set = 0; set < 2; set++)
        qk_output_error(&s->moments[set], block, w, m->start ? s->bias_before : s->gain,
                        s->product + worker * QK_ROW_BLOCK * K, s->error[set]);
}

static double total(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* Errors of the start, or of the result with its biases in s->gain. */
static void measure(solver *s, const qk_least_squares_result *result, bool start, double error[2]) {
    measurement m = {s, result, start};
    qk_pool_run(s->pool, measure_task, &m, s->blocks);
    for (int set = 0; set < 2; set++) error[set] = total(s->error[set], s->rows);
}

/* A bias that the start holds off its grid can win by the rounding alone: then nothing has changed. */
static bool is_as_it_was(const solver *s, const qk_least_squares_result *result, int64_t row) {
    const int64_t K = s->solving->inputs;
    const size_t size = (size_t)K * sizeof *result->weight_q;
    if (memcmp(result->weight_q + row * K, s->start->weight_q + row * K, size) != 0) return false;
    return !s->bias_free || s->best_bias_q[row] == start_bias_q(s, row);
}

static void hand_over(solver *s, qk_least_squares_result *result) {
    const int64_t K = s->solving->inputs;
    int64_t wins[QK_CANDIDATES] = {0};
    for (int64_t index = 0; index < s->blocks; index++) {
        const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
        for (int64_t j = 0; j < block.count * K; j++)
            result->weight_q[block.first * K + j] = (int32_t)s->best_q[(index * K + j % K) * QK_LANES + j / K];
    }
    for (int64_t r = 0; r < s->rows; r++) {
        if (is_as_it_was(s, result, r)) s->winner[r] = QK_START;
        wins[s->winner[r]]++;
        s->gain[r] = s->bias_before[r];
        if (!s->bias_free) continue;
        result->bias_q[r] = s->best_bias_q[r];
        if (s->winner[r] != QK_START) s->gain[r] = (double)s->start->bias_scale[r] * s->best_bias_q[r];
    }
    result->improved = s->rows - wins[QK_START];
    result->candidate = QK_START;
    for (int c = QK_START + 1; c < QK_CANDIDATES; c++)
        if (wins[c] > 0 && (result->candidate == QK_START || wins[c] > wins[result->candidate]))
            result->candidate = (qk_candidate)c;
    measure(s, result, false, result->after);
}

static qk_status try_candidates(solver *s, qk_least_squares_result *result) {
    const qk_least_squares_options *o = s->options;
    measure(s, NULL, true, result->before);
    for (int set = 0; set < 2; set++) {
        const qk_quadratic *q = &s->moments[set];
        result->power[set] = total(q->power, s->rows);
        for (int64_t r = 0; r < s->rows; r++) result->power[set] += q->mean_y[r] * q->mean_y[r];
    }
    if (s->bias_free) try_candidate(s, QK_BIAS_ONLY, 0);
    if (o->damping_count > 0) QK_TRY(try_all_dampings(s));
    hand_over(s, result);
    return QK_OK;
}

qk_status qk_least_squares(const qk_layer *layer, const qk_quantized_layer *start,
                           const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    solver s = {.start = start, .options = options, .pool = pool};
    qk_blas_enter();
    qk_status status = solver_init(&s, layer);
    if (status == QK_OK) status = try_candidates(&s, result);
    qk_blas_leave();
    solver_destroy(&s);
    return status;
}
