#include "training/judge.h"

#include <math.h>

#include "base/memory.h"
#include "base/pool.h"
#include "base/sizes.h"

qk_status qk_judge_init(qk_judge *j, const qk_training_problem *p) {
    *j = (qk_judge){.problem = p};
    j->row_loss = QK_NEW(double, p->rows);
    j->row_slope = QK_NEW(double, p->rows);
    j->slope = QK_NEW(float, p->rows);
    j->mean_power = QK_NEW(double, p->data->geometry.groups, p->inputs);
    if (!j->row_loss || !j->row_slope || !j->slope || !j->mean_power) return QK_E_NOMEM;
    return qk_reconstruction_init(&j->all, p->data, QK_JUDGED_TOGETHER, 0, p->pool);
}

void qk_judge_destroy(qk_judge *j) {
    qk_reconstruction_destroy(&j->all);
    for (int set = 0; set < 2; set++) qk_quadratic_destroy(&j->moments[set]);
    free(j->row_loss);
    free(j->row_slope);
    free(j->slope);
    free(j->mean_power);
    free(j->real);
}

qk_status qk_judge_use_moments(qk_judge *j, const qk_sample_grams *grams) {
    const qk_training_problem *p = j->problem;
    if (!qk_dataset_moments_apply(p->data)) return QK_OK;
    j->real = QK_NEW(double, 2, qk_pool_threads(p->pool), QK_ROW_BLOCK, p->inputs);
    if (!j->real) return QK_E_NOMEM;
    for (int set = 0; set < 2; set++)
        if (set == QK_FITTED && grams && grams->as_bytes)
            QK_TRY(qk_sample_grams_moments(grams, &j->moments[set]));
        else if (p->count[set] > 0)
            QK_TRY(qk_dataset_moments_init(&j->moments[set], p->data, p->samples[set], p->count[set], p->pool));
    return QK_OK;
}

/* ---- from moments ------------------------------------------------------------------------------ */

typedef struct {
    const qk_quadratic *moments;
    const float *layer;       /* (rows, K) */
    double *weight, *product; /* (threads, QK_ROW_BLOCK, K) */
    double *bias, *error;     /* (rows) */
} exact_job;

static void exact_task(void *context, int64_t index, int worker) {
    const exact_job *job = context;
    const int64_t K = job->moments->inputs, at = worker * QK_ROW_BLOCK * K;
    const qk_row_block block = qk_row_block_at(job->moments, QK_ROW_BLOCK, index);
    for (int64_t i = 0; i < block.count * K; i++) job->weight[at + i] = job->layer[block.first * K + i];
    qk_output_error(job->moments, block, job->weight + at, job->bias, job->product + at, job->error);
}

static double loss_from_moments(qk_judge *j, const qk_float_layer *layer, const qk_quadratic *q, qk_summary sums) {
    const int64_t K = q->inputs, O = q->outputs, rows = j->problem->rows;
    double *product = j->real + qk_pool_threads(j->problem->pool) * QK_ROW_BLOCK * K, *bias = j->row_slope, loss = 0;
    for (int64_t r = 0; r < rows; r++) bias[r] = layer->bias[r];
    exact_job job = {q, layer->weight, j->real, product, bias, j->row_loss};
    qk_pool_run(j->problem->pool, exact_task, &job, qk_row_blocks(q, QK_ROW_BLOCK));
    for (int64_t r = 0; r < rows; r++) {
        const double error = fmax(j->row_loss[r], 0); /* of sums that cancel */
        const double *mu = q->mean_x + r / O * K;
        const float *w = layer->weight + r * K;
        loss += error;
        if (sums.row_loss) sums.row_loss[r] += error;
        if (sums.slope_power) sums.slope_power[r] += 1;
        if (sums.target_power) *sums.target_power += q->power[r] + q->mean_y[r] * q->mean_y[r];
        for (int64_t k = 0; k < K && sums.mean_error; k++) sums.mean_error[r] += (double)w[k] * mu[k];
        if (sums.mean_error) sums.mean_error[r] += bias[r] - q->mean_y[r];
    }
    for (int64_t i = 0; i < q->groups * K && sums.mean_power; i++)
        sums.mean_power[i] += q->gram[i * K + i % K] + q->mean_x[i] * q->mean_x[i];
    return loss;
}

/* ---- from the samples -------------------------------------------------------------------------- */

static void add_share(double *to, const double *from, int64_t n, double share) {
    for (int64_t i = 0; i < n && to; i++) to[i] += share * from[i];
}

/* Zeros after a failure. */
static void find(qk_judge *j, const qk_float_layer *layer, const int64_t *samples, int64_t n,
                 qk_reconstruction_result *found) {
    if (!j->device) {
        qk_reconstruct(&j->all, layer->weight, layer->bias, samples, n, found);
        return;
    }
    const qk_status status = qk_device_reconstruct(j->device, layer->weight, layer->bias, samples, n, found);
    if (j->failed == QK_OK) j->failed = status;
}

double qk_judge_loss(qk_judge *j, const qk_float_layer *layer, qk_set set, qk_summary sums) {
    const qk_training_problem *p = j->problem;
    if (j->moments[set].gram) return loss_from_moments(j, layer, &j->moments[set], sums);
    double loss = 0, power = 0;
    qk_reconstruction_result found = {.row_loss = sums.row_loss ? j->row_loss : NULL,
                                      .slope = sums.mean_error ? j->slope : NULL,
                                      .mean_power = sums.mean_power ? j->mean_power : NULL,
                                      .slope_power = sums.slope_power ? j->row_slope : NULL,
                                      .target_power = sums.target_power ? &power : NULL};
    for (int64_t i = 0; i < p->count[set]; i += QK_JUDGED_TOGETHER) {
        const int64_t n = qk_smaller(p->count[set] - i, QK_JUDGED_TOGETHER);
        const double share = (double)n / (double)p->count[set];
        find(j, layer, p->samples[set] + i, n, &found);
        loss += share * found.loss;
        add_share(sums.row_loss, found.row_loss, p->rows, share);
        add_share(sums.mean_power, found.mean_power, p->data->geometry.groups * p->inputs, share);
        add_share(sums.slope_power, found.slope_power, p->rows, share);
        add_share(sums.target_power, found.target_power, 1, share);
        for (int64_t r = 0; r < p->rows && sums.mean_error; r++) sums.mean_error[r] += share * found.slope[r] / 2;
    }
    return p->count[set] ? loss : NAN;
}
