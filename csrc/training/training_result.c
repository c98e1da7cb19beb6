/* Judging by all samples: the start, what is offered, and what the steps led to. */
#include "training/training_result.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "ops/quantized_weight.h"
#include "solvers/least_squares.h"

static void add_share(double *to, const double *from, int64_t n, double share) {
    for (int64_t i = 0; i < n && to; i++) to[i] += share * from[i];
}

typedef struct {
    const qk_trainer *t;
    const qk_quadratic *moments;
    double *weight, *product; /* (threads, QK_ROW_BLOCK, K) */
    double *bias, *error;     /* (rows) */
} exact_job;

static void exact_task(void *context, int64_t index, int worker) {
    const exact_job *j = context;
    const int64_t K = j->moments->inputs, at = worker * QK_ROW_BLOCK * K;
    const qk_row_block block = qk_row_block_at(j->moments, QK_ROW_BLOCK, index);
    for (int64_t i = 0; i < block.count * K; i++) j->weight[at + i] = j->t->weight[block.first * K + i];
    qk_output_error(j->moments, block, j->weight + at, j->bias, j->product + at, j->error);
}

/* The same from moments. */
static double evaluate_exactly(const qk_trainer *t, const qk_quadratic *q, qk_summary sums) {
    const int64_t K = q->inputs, O = q->outputs;
    double loss = 0;
    for (int64_t r = 0; r < t->rows; r++) t->row_slope[r] = t->bias[r];
    exact_job job = {t, q, t->real, t->real + qk_pool_threads(t->pool) * QK_ROW_BLOCK * K, t->row_slope, t->row_loss};
    qk_pool_run(t->pool, exact_task, &job, qk_row_blocks(q, QK_ROW_BLOCK));
    for (int64_t r = 0; r < t->rows; r++) {
        const double error = fmax(t->row_loss[r], 0); /* of sums that cancel */
        const double *mu = q->mean_x + r / O * K;
        const float *w = t->weight + r * K;
        loss += error;
        if (sums.row_loss) sums.row_loss[r] += error;
        if (sums.slope_power) sums.slope_power[r] += 1;
        if (sums.target_power) *sums.target_power += q->power[r] + q->mean_y[r] * q->mean_y[r];
        for (int64_t k = 0; k < K && sums.mean_error; k++) sums.mean_error[r] += (double)w[k] * mu[k];
        if (sums.mean_error) sums.mean_error[r] += (double)t->bias[r] - q->mean_y[r];
    }
    for (int64_t i = 0; i < q->groups * K && sums.mean_power; i++)
        sums.mean_power[i] += q->gram[i * K + i % K] + q->mean_x[i] * q->mean_x[i];
    return loss;
}

double qk_evaluate(qk_trainer *t, qk_set set, qk_summary sums) {
    if (t->moments[set].gram) return evaluate_exactly(t, &t->moments[set], sums);
    double loss = 0, power = 0;
    qk_reconstruction_result found = {.row_loss = sums.row_loss ? t->row_loss : NULL,
                                      .slope = sums.mean_error ? t->found.slope : NULL,
                                      .mean_power = sums.mean_power ? t->found.mean_power : NULL,
                                      .slope_power = sums.slope_power ? t->row_slope : NULL,
                                      .target_power = sums.target_power ? &power : NULL};
    for (int64_t i = 0; i < t->count[set]; i += QK_EVALUATED) {
        const int64_t n = t->count[set] - i < QK_EVALUATED ? t->count[set] - i : QK_EVALUATED;
        const double share = (double)n / (double)t->count[set];
        qk_reconstruct(&t->all, t->weight, t->bias, t->samples[set] + i, n, &found);
        loss += share * found.loss;
        add_share(sums.row_loss, found.row_loss, t->rows, share);
        add_share(sums.mean_power, found.mean_power, t->data->geometry.groups * t->inputs, share);
        add_share(sums.slope_power, found.slope_power, t->rows, share);
        add_share(sums.target_power, found.target_power, 1, share);
        for (int64_t r = 0; r < t->rows && sums.mean_error; r++) sums.mean_error[r] += share * found.slope[r] / 2;
    }
    return t->count[set] ? loss : NAN;
}

/* Held-out samples judge; with few samples those that were trained on. */
static qk_set judging_set(const qk_trainer *t) { return t->count[QK_HELD_OUT] ? QK_HELD_OUT : QK_FITTED; }

/* What a step of one weight adds to the mean square of an output: the mean of scale^2 E[x^2] over its inputs. */
static double step_power(const qk_trainer *t, int64_t r, const double *power) {
    const int64_t K = t->inputs, block = qk_scale_block(t->start, K);
    double sum = 0;
    for (int64_t begin = 0; begin < K; begin += block) {
        const double scale = t->start->weight_scale[qk_scale_of(t->start, K, r * K + begin)];
        double mean = 0;
        for (int64_t k = begin; k < begin + block; k++) mean += power[k] / (double)K;
        sum += scale * scale * mean;
    }
    return sum;
}

static qk_status make_moments(qk_trainer *t) {
    if (!qk_dataset_moments_apply(t->data)) return QK_OK;
    t->real = QK_NEW(double, 2, qk_pool_threads(t->pool), QK_ROW_BLOCK, t->inputs);
    if (!t->real) return QK_E_NOMEM;
    for (int set = 0; set < 2; set++)
        if (t->by_grams && t->grams.as_bytes && set == QK_FITTED)
            QK_TRY(qk_sample_grams_moments(&t->grams, &t->moments[set]));
        else if (t->count[set] > 0)
            QK_TRY(qk_dataset_moments_init(&t->moments[set], t->data, t->samples[set], t->count[set], t->pool));
    return QK_OK;
}

qk_status qk_judge_start(qk_trainer *t, qk_gradient_result *result) {
    QK_TRY(make_moments(t));
    const int64_t K = t->inputs, O = t->data->geometry.outputs, inputs = t->data->geometry.groups * K;
    double *power = QK_NEW(double, inputs + t->rows);
    if (!power) return QK_E_NOMEM;
    double *slope_power = power + inputs;
    for (int set = 0; set < 2; set++) result->power[set] = t->count[set] > 0 ? 0 : NAN;
    for (int set = 0; set < 2; set++)
        result->before[set] = qk_evaluate(t, (qk_set)set,
                                          (qk_summary){.row_loss = (qk_set)set == judging_set(t) ? t->row_best : NULL,
                                                       .mean_power = set == QK_FITTED ? power : NULL,
                                                       .slope_power = set == QK_FITTED ? slope_power : NULL,
                                                       .target_power = &result->power[set]});
    for (int64_t r = 0; r < t->rows; r++) {
        const float per_unit = (float)(1 / (step_power(t, r, power + r / O * K) * slope_power[r]));
        t->per_unit[r] = isfinite(per_unit) ? per_unit : 0; /* dead inputs or outputs: nothing to train */
    }
    free(power);
    const bool finite =
        isfinite(result->before[QK_FITTED]) && (t->count[QK_HELD_OUT] == 0 || isfinite(result->before[QK_HELD_OUT]));
    return finite ? QK_OK : QK_E_TOO_LARGE; /* the samples are finite */
}

static double sum_of(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static int32_t integer_bias(const qk_trainer *t, int64_t r, float bias) {
    const qk_quantized_layer *l = t->start;
    return (int32_t)qk_clip(rint((double)(bias / l->bias_scale[r])), l->bias_qmin, l->bias_qmax);
}

/* The layer computes with these integers from now on. bias_q NULL: with the start's bias. */
static void use_integers(qk_trainer *t, const int32_t *weight_q, const int32_t *bias_q) {
    const qk_quantized_layer *l = t->start;
    for (int64_t i = 0; i < t->weights; i++) t->weight[i] = qk_dequantized(l, t->inputs, i, weight_q[i]);
    for (int64_t r = 0; r < t->rows && l->bias; r++)
        t->bias[r] = bias_q ? l->bias_scale[r] * (float)bias_q[r] : l->bias[r];
}

static void round_weights(qk_trainer *t) {
    const qk_quantized_layer *l = t->start;
    for (int64_t i = 0; i < t->weights; i++) {
        const int64_t scale = qk_scale_of(l, t->inputs, i);
        const double q = t->options->method == QK_ADAROUND
                             ? (double)t->base[i] + (t->variable[i] >= 0)
                             : rint((double)(t->variable[i] / l->weight_scale[scale])) + l->weight_zp[scale];
        t->weight_q[i] = (int32_t)qk_clip(q, l->qmin, l->qmax);
        t->weight[i] = qk_dequantized(l, t->inputs, i, t->weight_q[i]);
    }
}

/* Whether the loss of one output depends on the weights of others. */
static bool outputs_are_coupled(const qk_trainer *t) { return t->data->stage.activation.kind == QK_SOFTMAX; }

/* Outputs are problems of their own: the result takes these integers for those that get better by them. Coupled
 * outputs stand or fall together. Returns how many outputs took them. */
static int64_t offer(qk_trainer *t, const int32_t *weight_q, const int32_t *bias_q, qk_gradient_result *result) {
    double *loss = t->row_offered;
    int64_t taken = 0;
    use_integers(t, weight_q, qk_trains_bias(t) ? bias_q : NULL);
    memset(loss, 0, (size_t)t->rows * sizeof *loss);
    qk_evaluate(t, judging_set(t), (qk_summary){.row_loss = loss});
    const bool all_better = sum_of(loss, t->rows) < sum_of(t->row_best, t->rows);
    for (int64_t r = 0; r < t->rows; r++) {
        if (!(outputs_are_coupled(t) ? all_better : loss[r] < t->row_best[r])) continue;
        taken++;
        t->took[r] = true;
        t->row_best[r] = loss[r];
        memcpy(result->weight_q + r * t->inputs, weight_q + r * t->inputs, (size_t)t->inputs * sizeof *weight_q);
        if (qk_trains_bias(t)) result->bias_q[r] = bias_q[r];
    }
    return taken;
}

/* The best bias for these weights; behind an activation a step of Gauss and Newton towards it, halved where it does not
 * lower the loss that it was fitted to, in the end not taken. */
static qk_status fit_bias(qk_trainer *t) {
    enum { TRIES = 4 };
    double *step = QK_NEW(double, 4, t->rows);
    if (!step) return QK_E_NOMEM;
    double *slope_power = step + t->rows, *before = slope_power + t->rows, *after = before + t->rows;
    float *start = t->best_bias; /* not needed any more */
    memcpy(start, t->bias, (size_t)t->rows * sizeof *start);
    qk_evaluate(t, QK_FITTED, (qk_summary){.row_loss = before, .mean_error = step, .slope_power = slope_power});
    for (int64_t r = 0; r < t->rows; r++) {
        step[r] = slope_power[r] > 0 ? step[r] / slope_power[r] : 0;
        t->bias[r] = start[r] - (float)step[r];
    }
    const double all_before = sum_of(before, t->rows);
    bool done = qk_stage_is_plain(&t->data->stage);
    for (int i = 1; i <= TRIES && !done; i++) {
        memset(after, 0, (size_t)t->rows * sizeof *after);
        qk_evaluate(t, QK_FITTED, (qk_summary){.row_loss = after});
        const bool all_better = sum_of(after, t->rows) < all_before;
        done = true;
        for (int64_t r = 0; r < t->rows; r++) {
            if (step[r] == 0 || (outputs_are_coupled(t) ? all_better : after[r] < before[r])) continue;
            step[r] = i < TRIES ? step[r] / 2 : 0;
            t->bias[r] = start[r] - (float)step[r];
            done = false;
        }
    }
    free(step);
    return QK_OK;
}

void qk_first_result(qk_trainer *t, qk_gradient_result *result) {
    const qk_quantized_layer *l = t->start;
    const qk_gradient_options *o = t->options;
    memcpy(result->weight_q, l->weight_q, (size_t)t->weights * sizeof *l->weight_q);
    for (int64_t r = 0; r < t->rows && qk_trains_bias(t); r++) result->bias_q[r] = integer_bias(t, r, l->bias[r]);
    if (!o->offered_weight_q) return;
    offer(t, o->offered_weight_q, o->offered_bias_q, result);
    use_integers(t, l->weight_q, NULL);
}

static int64_t outputs_taken(const qk_trainer *t) {
    int64_t count = 0;
    for (int64_t r = 0; r < t->rows; r++) count += t->took[r];
    return count;
}

/* Coordinate descent from the result: the loops leave single weights behind whose other rounding is better. Only with
 * many more rows than inputs, as there is nothing to damp it. */
static qk_status descend(qk_trainer *t, qk_gradient_result *result) {
    enum { ROWS_PER_INPUT = 8, SWEEPS = 20 };
    const int64_t rows = t->count[QK_FITTED] * t->data->extent.positions;
    if (!t->moments[QK_FITTED].gram || rows < ROWS_PER_INPUT * t->inputs) return QK_OK;
    const double damping = 0;
    const qk_least_squares_options options = {
        .box = t->options->method == QK_ADAROUND ? QK_BOX_FLOOR_CEIL : QK_BOX_FREE,
        .update_bias = t->options->update_bias,
        .descends_only = true,
        .max_sweeps = SWEEPS,
        .damping = &damping,
        .damping_count = 1,
        .part_from = QK_PART_FROM,
    };
    qk_quantized_layer from = *t->start;
    use_integers(t, result->weight_q, qk_trains_bias(t) ? result->bias_q : NULL);
    from.weight_q = result->weight_q;
    from.bias = t->start->bias ? t->bias : NULL;
    const qk_quadratic moments[2] = {t->moments[QK_FITTED], t->moments[judging_set(t)]};
    qk_least_squares_result descended = {.weight_q = t->weight_q, .bias_q = t->bias_q};
    QK_TRY(qk_least_squares_on(moments, &from, &options, t->pool, &descended));
    offer(t, t->weight_q, t->bias_q, result);
    return QK_OK;
}

qk_status qk_finish(qk_trainer *t, qk_gradient_result *result) {
    round_weights(t);
    if (qk_trains_bias(t)) {
        if (t->options->method == QK_ADAROUND) QK_TRY(fit_bias(t));
        for (int64_t r = 0; r < t->rows; r++) t->bias_q[r] = integer_bias(t, r, t->bias[r]);
    }
    const int64_t trained = offer(t, t->weight_q, t->bias_q, result), before = outputs_taken(t);
    QK_TRY(descend(t, result));
    result->improved = outputs_taken(t);
    result->trained = trained + result->improved - before;
    use_integers(t, result->weight_q, qk_trains_bias(t) ? result->bias_q : NULL);
    for (int set = 0; set < 2; set++) {
        result->after[set] = qk_evaluate(t, (qk_set)set, (qk_summary){0});
        result->samples[set] = t->count[set];
    }
    return QK_OK;
}
