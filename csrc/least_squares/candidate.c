#include "least_squares/candidate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "least_squares/acceptance.h"
#include "ops/quantized_weight.h"

/* ---- what outputs hold ----------------------------------------------------------------------- */

int32_t qk_start_bias_q(const qk_quantized_layer *l, int64_t row) {
    const double bias = l->bias ? (double)l->bias[row] : 0;
    return (int32_t)qk_clip(rint(bias / (double)l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

qk_status qk_holding_new(qk_holding *h, const qk_quantized_layer *start, bool bias_free, int64_t rows, int64_t inputs,
                         int32_t *weight_q) {
    *h = (qk_holding){.weight_q = weight_q};
    h->bias_q = QK_NEW(int32_t, rows);
    h->winner = QK_NEW(qk_candidate, rows);
    bool ok = h->bias_q && h->winner;
    for (int set = 0; set < 2; set++) {
        ok &= (h->before[set] = QK_NEW(double, rows)) != NULL;
        ok &= (h->change[set] = QK_NEW(double, rows)) != NULL;
    }
    if (!ok) return QK_E_NOMEM;
    if (weight_q != start->weight_q) memcpy(weight_q, start->weight_q, (size_t)(rows * inputs) * sizeof *weight_q);
    for (int64_t r = 0; r < rows && bias_free; r++) h->bias_q[r] = qk_start_bias_q(start, r);
    return QK_OK;
}

void qk_holding_destroy(qk_holding *h) {
    void *arrays[] = {h->bias_q, h->winner, h->before[0], h->before[1], h->change[0], h->change[1]};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* ---- evaluation ------------------------------------------------------------------------------ */

qk_status qk_evaluation_new(qk_evaluation *e, int64_t lines, int64_t inputs) {
    e->q = QK_NEW(float, lines, inputs);
    e->bias_q = QK_NEW(int32_t, lines);
    bool ok = e->q && e->bias_q;
    for (int set = 0; set < 2; set++) {
        ok &= (e->change[set] = QK_NEW(double, lines)) != NULL;
        ok &= (e->error[set] = QK_NEW(double, lines)) != NULL;
    }
    return ok ? QK_OK : QK_E_NOMEM;
}

void qk_evaluation_destroy(qk_evaluation *e) {
    void *arrays[] = {e->q, e->bias_q, e->change[0], e->change[1], e->error[0], e->error[1]};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* w mu for both sets, w = scale (q - zero_point). */
static void means_of(const qk_evaluation *e, const qk_batch_part *block, int64_t i, const float *q, double means[2]) {
    const qk_quantized_layer *l = e->start;
    const int64_t K = e->batch->inputs, width = qk_scale_block(l, K), scale = (block->rows.first + i) * K / width;
    const double *mu[2] = {e->problem->mean_x[0] + block->rows.group * K,
                           e->problem->mean_x[1] + block->rows.group * K};
    means[0] = means[1] = 0;
    for (int64_t b = 0; b < K / width; b++) {
        double sums[2] = {0, 0};
        const float zp = (float)l->weight_zp[scale + b];
        for (int64_t k = b * width; k < (b + 1) * width; k++)
            for (int set = 0; set < 2; set++) sums[set] += mu[set][k] * (double)(q[k] - zp);
        for (int set = 0; set < 2; set++) means[set] += (double)l->weight_scale[scale + b] * sums[set];
    }
}

static double start_bias(const qk_evaluation *e, int64_t row) {
    return e->start->bias ? (double)e->start->bias[row] : 0;
}

/* The start's error: its centred part, and the mean's square. */
static void start_task(void *context, int64_t index, int worker) {
    (void)worker;
    const qk_evaluation *e = context;
    const qk_batch_part *block = &e->batch->block[index];
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t row = block->rows.first + i, line = block->line + i;
        double means[2];
        means_of(e, block, i, e->batch->q0 + line * e->batch->inputs, means);
        for (int set = 0; set < 2; set++) {
            const double mean = start_bias(e, row) + means[set] - e->problem->mean_y[set][row];
            e->holding->before[set][row] = fmax(0, e->error[set][line]) + mean * mean;
        }
    }
}

qk_status qk_evaluation_begin(qk_evaluation *e, const qk_batch *batch) {
    e->batch = batch;
    QK_TRY(e->problem->does->begin(e->problem, batch, e->error));
    return qk_run_tasks(&e->problem->run, start_task, e, batch->blocks);
}

typedef struct {
    const qk_evaluation *evaluation;
    qk_candidate candidate;
} evaluation_job;

/* The best bias for the weights: b = m - w mu of the fitted set, as an integer. */
static int32_t best_bias(const qk_evaluation *e, int64_t row, double wmu) {
    const qk_quantized_layer *l = e->start;
    const double b = e->problem->mean_y[QK_FITTED][row] - wmu;
    return (int32_t)qk_clip(rint(b / (double)l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

static void take(const evaluation_job *job, int64_t row, int64_t line) {
    const qk_evaluation *e = job->evaluation;
    const int64_t K = e->batch->inputs;
    for (int set = 0; set < 2; set++) e->holding->change[set][row] = e->change[set][line];
    for (int64_t k = 0; k < K; k++) e->holding->weight_q[row * K + k] = (int32_t)e->q[line * K + k];
    if (e->bias_free) e->holding->bias_q[row] = e->bias_q[line];
    e->holding->winner[row] = job->candidate;
}

/* Adds what the mean changes, and lets outputs take what makes them better. */
static void decide_task(void *context, int64_t index, int worker) {
    (void)worker;
    const evaluation_job *job = context;
    const qk_evaluation *e = job->evaluation;
    const qk_batch_part *block = &e->batch->block[index];
    const int64_t K = e->batch->inputs;
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t row = block->rows.first + i, line = block->line + i;
        double old[2], new[2], bias = start_bias(e, row);
        means_of(e, block, i, e->batch->q0 + line * K, old);
        means_of(e, block, i, e->q + line * K, new);
        if (e->bias_free) {
            e->bias_q[line] = best_bias(e, row, new[QK_FITTED]);
            bias = (double)e->start->bias_scale[row] * e->bias_q[line];
        }
        for (int set = 0; set < 2; set++) {
            const double before = start_bias(e, row) + old[set] - e->problem->mean_y[set][row];
            const double after = bias + new[set] - e->problem->mean_y[set][row];
            e->change[set][line] += after * after - before * before;
        }
        if (qk_accepts(e->change[QK_HELD_OUT][line], e->holding->change[QK_HELD_OUT][row])) take(job, row, line);
    }
}

/* The integers of a candidate, and what they change of the centred errors. */
static qk_status find(qk_evaluation *e, qk_candidate candidate) {
    const qk_problem_operations *does = e->problem->does;
    if (candidate == QK_BIAS_ONLY) {
        memcpy(e->q, e->batch->q0, (size_t)(e->batch->lines * e->batch->inputs) * sizeof *e->q);
        for (int set = 0; set < 2; set++) memset(e->change[set], 0, (size_t)e->batch->lines * sizeof(double));
        return QK_OK;
    }
    if (candidate == QK_ROUNDING_DESCENT) QK_TRY(does->round(e->problem, e->q));
    QK_TRY(does->descend(e->problem, e->q, e->max_sweeps));
    for (int set = 0; set < 2; set++) QK_TRY(does->judge(e->problem, (qk_set)set, e->q, e->change[set]));
    return QK_OK;
}

qk_status qk_evaluation_run(qk_evaluation *e, qk_candidate candidate, double *gain) {
    evaluation_job job = {e, candidate};
    QK_TRY(find(e, candidate));
    QK_TRY(qk_run_tasks(&e->problem->run, decide_task, &job, e->batch->blocks));
    *gain = 0;
    for (int64_t line = 0; line < e->batch->lines; line++) *gain += fmin(0, e->change[QK_HELD_OUT][line]);
    return QK_OK;
}
