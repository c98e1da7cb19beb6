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

/* ---- trials ---------------------------------------------------------------------------------- */

qk_status qk_trial_new(qk_trial *t, int64_t lines, int64_t inputs) {
    t->q = QK_NEW(float, lines, inputs);
    t->bias_q = QK_NEW(int32_t, lines);
    bool ok = t->q && t->bias_q;
    for (int set = 0; set < 2; set++) {
        ok &= (t->change[set] = QK_NEW(double, lines)) != NULL;
        ok &= (t->error[set] = QK_NEW(double, lines)) != NULL;
    }
    return ok ? QK_OK : QK_E_NOMEM;
}

void qk_trial_destroy(qk_trial *t) {
    void *arrays[] = {t->q, t->bias_q, t->change[0], t->change[1], t->error[0], t->error[1]};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* w mu for both sets, w = scale (q - zero_point). */
static void means_of(const qk_trial *t, const qk_batch_part *block, int64_t i, const float *q, double means[2]) {
    const qk_quantized_layer *l = t->start;
    const int64_t K = t->batch->inputs, width = qk_scale_block(l, K), scale = (block->rows.first + i) * K / width;
    const double *mu[2] = {t->problem->mean_x[0] + block->rows.group * K,
                           t->problem->mean_x[1] + block->rows.group * K};
    means[0] = means[1] = 0;
    for (int64_t b = 0; b < K / width; b++) {
        double sums[2] = {0, 0};
        const float zp = (float)l->weight_zp[scale + b];
        for (int64_t k = b * width; k < (b + 1) * width; k++)
            for (int set = 0; set < 2; set++) sums[set] += mu[set][k] * (double)(q[k] - zp);
        for (int set = 0; set < 2; set++) means[set] += (double)l->weight_scale[scale + b] * sums[set];
    }
}

static double start_bias(const qk_trial *t, int64_t row) { return t->start->bias ? (double)t->start->bias[row] : 0; }

/* The start's error: its centred part, and the mean's square. */
static void start_task(void *context, int64_t index, int worker) {
    (void)worker;
    const qk_trial *t = context;
    const qk_batch_part *block = &t->batch->block[index];
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t row = block->rows.first + i, line = block->line + i;
        double means[2];
        means_of(t, block, i, t->batch->q0 + line * t->batch->inputs, means);
        for (int set = 0; set < 2; set++) {
            const double mean = start_bias(t, row) + means[set] - t->problem->mean_y[set][row];
            t->holding->before[set][row] = fmax(0, t->error[set][line]) + mean * mean;
        }
    }
}

qk_status qk_trial_begin(qk_trial *t, const qk_batch *batch) {
    t->batch = batch;
    QK_TRY(t->problem->does->begin(t->problem, batch, t->error));
    return qk_run_tasks(&t->problem->run, start_task, t, batch->blocks);
}

typedef struct {
    const qk_trial *t;
    qk_candidate candidate;
} trial_job;

/* The best bias for the weights: b = m - w mu of the fitted set, as an integer. */
static int32_t best_bias(const qk_trial *t, int64_t row, double wmu) {
    const qk_quantized_layer *l = t->start;
    const double b = t->problem->mean_y[QK_FITTED][row] - wmu;
    return (int32_t)qk_clip(rint(b / (double)l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

static void take(const trial_job *job, int64_t row, int64_t line) {
    const qk_trial *t = job->t;
    const int64_t K = t->batch->inputs;
    for (int set = 0; set < 2; set++) t->holding->change[set][row] = t->change[set][line];
    for (int64_t k = 0; k < K; k++) t->holding->weight_q[row * K + k] = (int32_t)t->q[line * K + k];
    if (t->bias_free) t->holding->bias_q[row] = t->bias_q[line];
    t->holding->winner[row] = job->candidate;
}

/* Adds what the mean changes, and lets outputs take what makes them better. */
static void decide_task(void *context, int64_t index, int worker) {
    (void)worker;
    const trial_job *job = context;
    const qk_trial *t = job->t;
    const qk_batch_part *block = &t->batch->block[index];
    const int64_t K = t->batch->inputs;
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t row = block->rows.first + i, line = block->line + i;
        double old[2], new[2], bias = start_bias(t, row);
        means_of(t, block, i, t->batch->q0 + line * K, old);
        means_of(t, block, i, t->q + line * K, new);
        if (t->bias_free) {
            t->bias_q[line] = best_bias(t, row, new[QK_FITTED]);
            bias = (double)t->start->bias_scale[row] * t->bias_q[line];
        }
        for (int set = 0; set < 2; set++) {
            const double before = start_bias(t, row) + old[set] - t->problem->mean_y[set][row];
            const double after = bias + new[set] - t->problem->mean_y[set][row];
            t->change[set][line] += after * after - before * before;
        }
        if (qk_accepts(t->change[QK_HELD_OUT][line], t->holding->change[QK_HELD_OUT][row])) take(job, row, line);
    }
}

/* The integers of a candidate, and what they change of the centred errors. */
static qk_status find(qk_trial *t, qk_candidate candidate) {
    const qk_problem_operations *does = t->problem->does;
    if (candidate == QK_BIAS_ONLY) {
        memcpy(t->q, t->batch->q0, (size_t)(t->batch->lines * t->batch->inputs) * sizeof *t->q);
        for (int set = 0; set < 2; set++) memset(t->change[set], 0, (size_t)t->batch->lines * sizeof(double));
        return QK_OK;
    }
    if (candidate == QK_ROUNDING_DESCENT) QK_TRY(does->round(t->problem, t->q));
    QK_TRY(does->descend(t->problem, t->q, t->max_sweeps));
    for (int set = 0; set < 2; set++) QK_TRY(does->judge(t->problem, (qk_set)set, t->q, t->change[set]));
    return QK_OK;
}

qk_status qk_trial_run(qk_trial *t, qk_candidate candidate, double *gain) {
    trial_job job = {t, candidate};
    QK_TRY(find(t, candidate));
    QK_TRY(qk_run_tasks(&t->problem->run, decide_task, &job, t->batch->blocks));
    *gain = 0;
    for (int64_t line = 0; line < t->batch->lines; line++) *gain += fmin(0, t->change[QK_HELD_OUT][line]);
    return QK_OK;
}
