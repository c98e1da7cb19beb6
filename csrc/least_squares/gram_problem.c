/* Integers from moments: every product is with a K x K matrix, and is made for a piece of the outputs and a strip of
 * the inputs at a time. Slopes at the start are float64; candidates are sought and compared in float32, as changes from
 * the start, which are of the size of the error itself. */
#include "least_squares/gram_problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "ops/quantized_weight.h"
#include "solvers/closest_point.h"
#include "solvers/coordinate_descent.h"
#include "solvers/damped_factor.h"
#include "solvers/gptq.h"

typedef struct {
    qk_problem base;
    qk_quadratic moments[2];
    const qk_quantized_layer *start;
    bool bias_free;
    const qk_batch *batch;
    /* What candidates minimise: the fitted moments, with the mean where the bias stays. */
    float *gram;   /* (groups,K,K), + lam I */
    double *trace; /* (groups) without lam */
    double *lam;   /* (groups) */
    bool *wanted;  /* (groups): that the batch has outputs of */
    qk_damped_factors factors;
    const qk_damped_factor *factor; /* of the present damping; NULL: none */
    float *slope[2];                /* (lines,K) half the derivative at the start: solving, held out */
    double *mean;                   /* (lines): b + w0 mu - m of the fitted set */
    float *residual;                /* (lines,K): half the derivative of the damped error at the present q */
    float *errors;                  /* (lines,K): scratch of rounding; the change in judge */
    double *partial;                /* (lines, strips): sums that a strip adds */
    double *tile;                   /* (threads, TILE_NUMBERS) */
    qk_sweep sweep;
    bool rounded; /* residual belongs to what `round` set */
} gram_problem;

enum { TILE_NUMBERS = 2 * QK_PIECE * QK_STRIP + QK_STRIP * QK_STRIP };

static int64_t strips_of(const gram_problem *p) { return qk_ceil_div(p->base.inputs, QK_STRIP); }

/* ---- the slope at the start ------------------------------------------------------------------ */

typedef struct {
    gram_problem *p;
    int set;
    const float *q; /* judge: (lines,K) */
} strip_job;

/* Task: of a piece, one strip of lines w0 G - c, and its part of w0 G w0' - 2 w0 c'. */
static void slope_task(void *context, int64_t task, int worker) {
    const strip_job *job = context;
    gram_problem *p = job->p;
    const qk_quadratic *moments = &p->moments[job->set];
    const int64_t K = p->base.inputs, strips = strips_of(p), begin = task % strips * QK_STRIP;
    const int64_t n = qk_smaller(QK_STRIP, K - begin);
    const qk_batch_part *piece = &p->batch->piece[task / strips];
    const float *w0 = p->batch->w0 + piece->line * K;
    double *product = p->tile + worker * TILE_NUMBERS, *w = product + QK_PIECE * QK_STRIP;
    for (int64_t from = 0; from < K; from += QK_STRIP) {
        const int64_t k = qk_smaller(QK_STRIP, K - from);
        for (int64_t i = 0; i < piece->rows.count; i++)
            for (int64_t j = 0; j < k; j++) w[i * k + j] = (double)w0[i * K + from + j];
        qk_dgemm(product, w, moments->gram + (piece->rows.group * K + from) * K + begin,
                 (qk_gemm_shape){
                     .m = piece->rows.count, .n = n, .k = k, .lda = k, .ldb = K, .ldc = n, .accumulate = from > 0});
    }
    const double *mu = moments->mean_x + piece->rows.group * K + begin;
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const double *c = moments->cross + (piece->rows.first + i) * K + begin, *line = product + i * n;
        const double mean = job->set == QK_FITTED && !p->bias_free ? p->mean[piece->line + i] : 0;
        float *slope = p->slope[job->set] + (piece->line + i) * K + begin;
        double error = 0;
        for (int64_t k = 0; k < n; k++) {
            error += (double)w0[i * K + begin + k] * (line[k] - 2 * c[k]);
            slope[k] = (float)(line[k] - c[k] + mean * mu[k]);
        }
        p->partial[(piece->line + i) * strips + task % strips] = error;
    }
}

static double sum_of_strips(const gram_problem *p, int64_t line) {
    double sum = 0;
    for (int64_t s = 0; s < strips_of(p); s++) sum += p->partial[line * strips_of(p) + s];
    return sum;
}

/* b + w0 mu - m of a block's outputs. */
static void mean_task(void *context, int64_t index, int worker) {
    (void)worker;
    gram_problem *p = context;
    const qk_quadratic *fitted = &p->moments[QK_FITTED];
    const qk_batch_part *block = &p->batch->block[index];
    const int64_t K = p->base.inputs;
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t row = block->rows.first + i;
        const float *w = p->batch->w0 + (block->line + i) * K;
        double mean = (p->start->bias ? (double)p->start->bias[row] : 0) - fitted->mean_y[row];
        for (int64_t k = 0; k < K; k++) mean += (double)w[k] * fitted->mean_x[block->rows.group * K + k];
        p->mean[block->line + i] = mean;
    }
}

static qk_status begin(qk_problem *problem, const qk_batch *batch, double *const error[2]) {
    gram_problem *p = (gram_problem *)problem;
    p->batch = p->sweep.batch = batch;
    memset(p->wanted, 0, (size_t)p->base.groups * sizeof *p->wanted);
    for (int64_t b = 0; b < batch->blocks; b++) p->wanted[batch->block[b].rows.group] = true;
    QK_TRY(qk_run_tasks(&p->base.run, mean_task, p, batch->blocks));
    for (int set = 0; set < 2; set++) {
        strip_job job = {.p = p, .set = set};
        QK_TRY(qk_run_tasks(&p->base.run, slope_task, &job, batch->pieces * strips_of(p)));
        for (int64_t b = 0; b < batch->blocks; b++)
            for (int64_t i = 0; i < batch->block[b].rows.count; i++) {
                const int64_t line = batch->block[b].line + i;
                error[set][line] = sum_of_strips(p, line) + p->moments[set].power[batch->block[b].rows.first + i];
            }
    }
    p->rounded = false;
    return QK_OK;
}

/* ---- damping --------------------------------------------------------------------------------- */

static qk_status damp(qk_problem *problem, double damping, bool rounds) {
    gram_problem *p = (gram_problem *)problem;
    const qk_quadratic *fitted = &p->moments[QK_FITTED];
    const int64_t K = p->base.inputs;
    for (int64_t g = 0; g < p->base.groups; g++) {
        const double *mu = fitted->mean_x + g * K;
        p->lam[g] = damping * p->trace[g] / (double)K;
        for (int64_t k = g * K; k < (g + 1) * K; k++) {
            const double mean = p->bias_free ? 0 : mu[k - g * K] * mu[k - g * K];
            p->gram[k * K + k - g * K] = (float)(fitted->gram[k * K + k - g * K] + mean + p->lam[g]);
        }
    }
    p->rounded = false;
    p->factor = NULL;
    if (!rounds) return QK_OK;
    const qk_damped_gram gram = {p->gram, fitted, p->bias_free ? NULL : fitted->mean_x, p->lam};
    QK_TRY(qk_damped_factors_get(&p->factors, damping, &gram, p->wanted, &p->base.run, &p->factor));
    p->base.float64_factor = p->factors.float64;
    return QK_OK;
}

/* Half the derivative of the damped error at the start: slope + lam (w0 - w). */
static void restart_task(void *context, int64_t index, int worker) {
    (void)worker;
    gram_problem *p = context;
    const qk_batch_part *block = &p->batch->block[index];
    const int64_t K = p->base.inputs, at = block->line * K;
    const float lam = (float)p->lam[block->rows.group];
    const float *weight = p->start->weight + block->rows.first * K;
    for (int64_t i = 0; i < block->rows.count * K; i++)
        p->residual[at + i] = p->slope[QK_FITTED][at + i] + lam * (p->batch->w0[at + i] - weight[i]);
}

/* ---- candidates ------------------------------------------------------------------------------ */

/* What the integers change of the weight: scale (q - q0), for the lines of a block. */
static void change_task(void *context, int64_t index, int worker) {
    (void)worker;
    const strip_job *job = context;
    const qk_batch *batch = job->p->batch;
    const qk_batch_part *block = &batch->block[index];
    const int64_t K = batch->inputs, width = qk_scale_block(batch->start, K), at = block->line * K;
    const float *scale = batch->start->weight_scale + block->rows.first * K / width;
    for (int64_t b = 0; b < block->rows.count * K / width; b++)
        for (int64_t i = at + b * width; i < at + (b + 1) * width; i++)
            job->p->errors[i] = scale[b] * (job->q[i] - batch->q0[i]);
}

/* Few inputs: the closest point, and the residual there. */
static void closest_task(void *context, int64_t index, int worker) {
    const strip_job *job = context;
    gram_problem *p = job->p;
    const qk_batch *batch = p->batch;
    const qk_batch_part *block = &batch->block[index];
    const int64_t K = p->base.inputs, at = block->line * K;
    const double *l = p->factor->exact + block->rows.group * K * K;
    const qk_strip_lanes lanes = qk_strip_lanes_of(&p->sweep, worker);
    const qk_lanes all = qk_kernel_lanes(&p->sweep, &lanes, 0, 0);
    const qk_integer_rows rows = {K, all.scale, all.zp, all.lo, all.hi, all.q, all.scale_block};
    if (!p->factor->sound[block->rows.group]) return;
    qk_lanes_from(batch, block, job->q, 0, K, lanes.arrays);
    for (int i = 0; i < (int)block->rows.count; i++) {
        double target[QK_FEW_INPUTS];
        for (int64_t k = 0; k < K; k++) target[k] = -(double)p->residual[at + i * K + k];
        qk_cholesky_solve(target, 1, l, K);
        for (int64_t k = 0; k < K; k++) target[k] += (double)batch->w0[at + i * K + k];
        qk_closest_point(&rows, i, target, l);
    }
    qk_lines_of(batch, block, rows.q, 0, K, p->sweep.q);
    change_task(context, index, worker);
    qk_sgemm(p->residual + at, p->errors + at, p->gram + block->rows.group * K * K,
             (qk_gemm_shape){.m = block->rows.count, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K, .accumulate = true});
}

/* Where G + lam I has no factor, as of inputs that are always zero, the start stays. */
static void restore_task(void *context, int64_t index, int worker) {
    const strip_job *job = context;
    gram_problem *p = job->p;
    const qk_batch_part *block = &p->batch->block[index];
    const int64_t K = p->base.inputs, at = block->line * K;
    if (p->factor->sound[block->rows.group]) return;
    memcpy(p->sweep.q + at, p->batch->q0 + at, (size_t)(block->rows.count * K) * sizeof *p->sweep.q);
    restart_task(p, index, worker);
}

static qk_status solve_round(qk_problem *problem, float *q) {
    gram_problem *p = (gram_problem *)problem;
    memcpy(q, p->batch->q0, (size_t)(p->batch->lines * p->base.inputs) * sizeof *q);
    p->sweep.q = q;
    p->sweep.lines = p->residual;
    p->sweep.matrix = p->factor->l;
    strip_job job = {.p = p, .q = q};
    QK_TRY(qk_run_tasks(&p->base.run, restart_task, p, p->batch->blocks));
    if (p->base.inputs <= QK_FEW_INPUTS) {
        QK_TRY(qk_run_tasks(&p->base.run, closest_task, &job, p->batch->blocks));
    } else {
        QK_TRY(qk_gptq(&p->sweep, p->errors));
        QK_TRY(qk_run_tasks(&p->base.run, restore_task, &job, p->batch->blocks));
    }
    p->rounded = true;
    return QK_OK;
}

static qk_status descend(qk_problem *problem, float *q, int max_sweeps) {
    gram_problem *p = (gram_problem *)problem;
    if (!p->rounded) {
        memcpy(q, p->batch->q0, (size_t)(p->batch->lines * p->base.inputs) * sizeof *q);
        QK_TRY(qk_run_tasks(&p->base.run, restart_task, p, p->batch->blocks));
    }
    p->sweep.q = q;
    p->sweep.lines = p->residual;
    p->sweep.matrix = p->gram;
    p->rounded = false;
    return qk_coordinate_descent(&p->sweep, max_sweeps);
}

/* ---- judging --------------------------------------------------------------------------------- */

/* Task: of a piece, what one strip adds to d (G d + 2 slope). */
static void judge_task(void *context, int64_t task, int worker) {
    const strip_job *job = context;
    gram_problem *p = job->p;
    const int64_t K = p->base.inputs, strips = strips_of(p), begin = task % strips * QK_STRIP;
    const int64_t n = qk_smaller(QK_STRIP, K - begin);
    const qk_batch_part *piece = &p->batch->piece[task / strips];
    const float *change = p->errors + piece->line * K;
    float *product = (float *)(p->tile + worker * TILE_NUMBERS), *tile = product + QK_PIECE * QK_STRIP;
    for (int64_t from = 0; from < K; from += QK_STRIP) {
        const int64_t k = qk_smaller(QK_STRIP, K - from);
        const double *gram = p->moments[job->set].gram + (piece->rows.group * K + from) * K + begin;
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < n; j++) tile[i * n + j] = (float)gram[i * K + j];
        qk_sgemm(product, change + from, tile,
                 (qk_gemm_shape){
                     .m = piece->rows.count, .n = n, .k = k, .lda = K, .ldb = n, .ldc = n, .accumulate = from > 0});
    }
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const float *d = change + i * K + begin, *slope = p->slope[job->set] + (piece->line + i) * K + begin;
        double sum = 0;
        for (int64_t k = 0; k < n; k++) sum += (double)(d[k] * (product[i * n + k] + 2 * slope[k]));
        p->partial[(piece->line + i) * strips + task % strips] = sum;
    }
}

/* The fitted set: the residual is slope + lam (w0 - w) + (G + lam I) d, so that it holds G d. Of the mean, where the
 * bias stays, nothing is to be left. */
static void fitted_task(void *context, int64_t index, int worker) {
    (void)worker;
    const strip_job *job = context;
    gram_problem *p = job->p;
    const qk_batch_part *block = &p->batch->block[index];
    const int64_t K = p->base.inputs, strips = strips_of(p);
    const float lam = (float)p->lam[block->rows.group];
    const double *mu = p->moments[QK_FITTED].mean_x + block->rows.group * K;
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t line = block->line + i, at = line * K;
        const float *d = p->errors + at, *slope = p->slope[QK_FITTED] + at, *w0 = p->batch->w0 + at;
        const float *weight = p->start->weight + (block->rows.first + i) * K;
        double sum = 0, moved = 0;
        for (int64_t k = 0; k < K; k++) {
            const float product = p->residual[at + k] - slope[k] - lam * (w0[k] - weight[k] + d[k]);
            sum += (double)(d[k] * (product + 2 * slope[k]));
            moved += mu[k] * (double)d[k];
        }
        if (!p->bias_free) sum -= moved * (moved + 2 * p->mean[line]);
        for (int64_t s = 0; s < strips; s++) p->partial[line * strips + s] = s == 0 ? sum : 0;
    }
}

static qk_status judge(qk_problem *problem, qk_set set, const float *q, double *change) {
    gram_problem *p = (gram_problem *)problem;
    strip_job job = {.p = p, .set = set, .q = q};
    QK_TRY(qk_run_tasks(&p->base.run, change_task, &job, p->batch->blocks));
    if (set == QK_FITTED)
        QK_TRY(qk_run_tasks(&p->base.run, fitted_task, &job, p->batch->blocks));
    else
        QK_TRY(qk_run_tasks(&p->base.run, judge_task, &job, p->batch->pieces * strips_of(p)));
    for (int64_t line = 0; line < p->batch->lines; line++) change[line] = sum_of_strips(p, line);
    return QK_OK;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static void destroy(qk_problem *problem) {
    gram_problem *p = (gram_problem *)problem;
    void *arrays[] = {p->gram, p->trace,    p->lam,    p->wanted,  p->slope[0], p->slope[1],
                      p->mean, p->residual, p->errors, p->partial, p->tile};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    qk_damped_factors_destroy(&p->factors);
    qk_sweep_destroy(&p->sweep);
    free(p);
}

static qk_status allocate(gram_problem *p, int64_t blocks) {
    const int64_t K = p->base.inputs, groups = p->base.groups, lines = QK_PRODUCT(blocks, QK_LANES);
    float **lines_of[] = {&p->slope[0], &p->slope[1], &p->residual, &p->errors};
    bool ok = true;
    for (size_t i = 0; i < sizeof lines_of / sizeof *lines_of; i++)
        ok &= (*lines_of[i] = QK_NEW(float, lines, K)) != NULL;
    p->gram = QK_NEW(float, groups, K, K);
    p->trace = QK_NEW(double, groups);
    p->lam = QK_NEW(double, groups);
    p->wanted = QK_NEW(bool, groups);
    p->mean = QK_NEW(double, lines);
    p->partial = QK_NEW(double, lines, strips_of(p));
    p->tile = QK_NEW(double, qk_pool_threads(p->base.run.pool), TILE_NUMBERS);
    ok &= p->gram && p->trace && p->lam && p->wanted && p->mean && p->partial && p->tile;
    return ok ? qk_sweep_new(&p->sweep, &p->base.run, blocks, K, K / qk_scale_block(p->start, K)) : QK_E_NOMEM;
}

/* Lines of G in float32. */
static void gram_task(void *context, int64_t line, int worker) {
    (void)worker;
    gram_problem *p = context;
    const qk_quadratic *fitted = &p->moments[QK_FITTED];
    const int64_t K = p->base.inputs;
    const double *mu = fitted->mean_x + line / K * K, mean = p->bias_free ? 0 : mu[line % K];
    for (int64_t k = 0; k < K; k++) p->gram[line * K + k] = (float)(fitted->gram[line * K + k] + mean * mu[k]);
}

qk_status qk_gram_problem_new(qk_problem **problem, const qk_quadratic moments[2], const qk_quantized_layer *start,
                              bool bias_free, int64_t blocks, const qk_run *run) {
    static const qk_problem_operations operations = {begin, damp, solve_round, descend, judge, destroy};
    const qk_quadratic *fitted = &moments[QK_FITTED];
    const int64_t K = fitted->inputs;
    gram_problem *p = QK_NEW(gram_problem, 1);
    if (!p) return QK_E_NOMEM;
    p->base = (qk_problem){
        .does = &operations, .run = *run, .groups = fitted->groups, .inputs = K, .outputs = fitted->outputs};
    for (int set = 0; set < 2; set++) {
        p->moments[set] = moments[set];
        p->base.mean_x[set] = moments[set].mean_x;
        p->base.mean_y[set] = moments[set].mean_y;
        p->base.power[set] = moments[set].power;
    }
    p->start = start;
    p->bias_free = bias_free;
    qk_damped_factors_init(&p->factors, fitted->groups, K);
    qk_status status = allocate(p, blocks);
    if (status == QK_OK) status = qk_run_tasks(&p->base.run, gram_task, p, fitted->groups * K);
    if (status != QK_OK) {
        destroy(&p->base);
        return status;
    }
    for (int64_t g = 0; g < fitted->groups; g++)
        for (int64_t k = 0; k < K; k++) p->trace[g] += (double)p->gram[(g * K + k) * K + k];
    *problem = &p->base;
    return QK_OK;
}
