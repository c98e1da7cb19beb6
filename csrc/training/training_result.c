#include "training/training_result.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "least_squares/least_squares.h"
#include "ops/quantized_weight.h"

qk_status qk_training_result_init(qk_training_result *r, qk_judge *judge, qk_float_layer *layer,
                                  qk_gradient_result *best) {
    const qk_training_problem *p = judge->problem;
    *r = (qk_training_result){.problem = p, .judge = judge, .layer = layer, .best = best};
    r->took = QK_NEW(bool, p->rows);
    r->best_loss = QK_NEW(double, p->rows);
    r->offered = QK_NEW(double, p->rows);
    r->weight_q = QK_NEW(int32_t, p->weights);
    r->bias_q = QK_NEW(int32_t, p->rows);
    return r->took && r->best_loss && r->offered && r->weight_q && r->bias_q ? QK_OK : QK_E_NOMEM;
}

void qk_training_result_destroy(qk_training_result *r) {
    free(r->took);
    free(r->best_loss);
    free(r->offered);
    free(r->weight_q);
    free(r->bias_q);
}

qk_status qk_judge_start(qk_training_result *r, double *input_power, double *slope_power) {
    const qk_training_problem *p = r->problem;
    qk_gradient_result *best = r->best;
    for (int set = 0; set < 2; set++) {
        best->power[set] = p->count[set] > 0 ? 0 : NAN;
        const qk_summary sums = {.row_loss = (qk_set)set == qk_judging_set(p) ? r->best_loss : NULL,
                                 .mean_power = set == QK_FITTED ? input_power : NULL,
                                 .slope_power = set == QK_FITTED ? slope_power : NULL,
                                 .target_power = &best->power[set]};
        best->before[set] = qk_judge_loss(r->judge, r->layer, (qk_set)set, sums);
        if (p->count[set] > 0 && !isfinite(best->before[set])) return QK_E_TOO_LARGE; /* the samples are finite */
    }
    return QK_OK;
}

static double sum_of(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* Whether the loss of one output depends on the weights of others. */
static bool outputs_are_coupled(const qk_training_problem *p) { return p->data->stage.activation.kind == QK_SOFTMAX; }

static int32_t integer_bias(const qk_quantized_layer *l, int64_t row, float bias) {
    return (int32_t)fmin(fmax(rint((double)(bias / l->bias_scale[row])), l->bias_qmin), l->bias_qmax);
}

/* Outputs are problems of their own: the result takes these integers for those that get better by them. Coupled
 * outputs stand or fall together. Returns how many outputs took them. */
static int64_t offer(qk_training_result *r, const int32_t *weight_q, const int32_t *bias_q) {
    const qk_training_problem *p = r->problem;
    double *loss = r->offered;
    int64_t taken = 0;
    qk_use_integers(r->layer, p, weight_q, qk_trains_bias(p) ? bias_q : NULL);
    memset(loss, 0, (size_t)p->rows * sizeof *loss);
    qk_judge_loss(r->judge, r->layer, qk_judging_set(p), (qk_summary){.row_loss = loss});
    const bool all_better = sum_of(loss, p->rows) < sum_of(r->best_loss, p->rows);
    for (int64_t row = 0; row < p->rows; row++) {
        if (!(outputs_are_coupled(p) ? all_better : loss[row] < r->best_loss[row])) continue;
        taken++;
        r->took[row] = true;
        r->best_loss[row] = loss[row];
        memcpy(r->best->weight_q + row * p->inputs, weight_q + row * p->inputs, (size_t)p->inputs * sizeof *weight_q);
        if (qk_trains_bias(p)) r->best->bias_q[row] = bias_q[row];
    }
    return taken;
}

void qk_offer_first(qk_training_result *r) {
    const qk_training_problem *p = r->problem;
    const qk_quantized_layer *l = p->start;
    memcpy(r->best->weight_q, l->weight_q, (size_t)p->weights * sizeof *l->weight_q);
    for (int64_t row = 0; row < p->rows && qk_trains_bias(p); row++)
        r->best->bias_q[row] = integer_bias(l, row, l->bias[row]);
    if (!p->options->offered_weight_q) return;
    offer(r, p->options->offered_weight_q, p->options->offered_bias_q);
    qk_use_integers(r->layer, p, l->weight_q, NULL);
}

/* ---- what the steps led to --------------------------------------------------------------------- */

/* The best bias for the layer's weights; behind an activation a step of Gauss and Newton towards it, halved where it
 * does not lower the loss that it was fitted to, in the end not taken. */
static qk_status fit_bias(qk_training_result *r) {
    enum { TRIES = 4 };
    const qk_training_problem *p = r->problem;
    const int64_t rows = p->rows;
    float *bias = r->layer->bias, *start = QK_NEW(float, rows);
    double *step = QK_NEW(double, 4, rows), *slope_power = step + rows, *before = step + 2 * rows;
    double *after = step + 3 * rows;
    if (!start || !step) {
        free(start);
        free(step);
        return QK_E_NOMEM;
    }
    memcpy(start, bias, (size_t)rows * sizeof *start);
    qk_judge_loss(r->judge, r->layer, QK_FITTED,
                  (qk_summary){.row_loss = before, .mean_error = step, .slope_power = slope_power});
    for (int64_t row = 0; row < rows; row++) {
        step[row] = slope_power[row] > 0 ? step[row] / slope_power[row] : 0;
        bias[row] = start[row] - (float)step[row];
    }
    const double all_before = sum_of(before, rows);
    bool done = qk_stage_is_plain(&p->data->stage);
    for (int i = 1; i <= TRIES && !done; i++) {
        memset(after, 0, (size_t)rows * sizeof *after);
        qk_judge_loss(r->judge, r->layer, QK_FITTED, (qk_summary){.row_loss = after});
        const bool all_better = sum_of(after, rows) < all_before;
        done = true;
        for (int64_t row = 0; row < rows; row++) {
            if (step[row] == 0 || (outputs_are_coupled(p) ? all_better : after[row] < before[row])) continue;
            step[row] = i < TRIES ? step[row] / 2 : 0;
            bias[row] = start[row] - (float)step[row];
            done = false;
        }
    }
    free(start);
    free(step);
    return QK_OK;
}

/* Coordinate descent from the result: the loops leave single weights behind whose other rounding is better. Only with
 * many more rows than inputs, as there is nothing to damp it. */
static qk_status descend(qk_training_result *r, qk_rounding_range rounding) {
    enum { ROWS_PER_INPUT = 8, SWEEPS = 20 };
    const qk_training_problem *p = r->problem;
    const qk_quadratic *moments = r->judge->moments;
    if (!moments[QK_FITTED].gram || p->count[QK_FITTED] * p->data->extent.positions < ROWS_PER_INPUT * p->inputs)
        return QK_OK;
    const double damping = 0;
    const qk_least_squares_options options = {
        .rounding = rounding,
        .update_bias = p->options->update_bias,
        .descends_only = true,
        .max_sweeps = SWEEPS,
        .damping = &damping,
        .damping_count = 1,
        .part_from = QK_PART_FROM,
    };
    qk_quantized_layer from = *p->start;
    qk_use_integers(r->layer, p, r->best->weight_q, qk_trains_bias(p) ? r->best->bias_q : NULL);
    from.weight_q = r->best->weight_q;
    from.bias = p->start->bias ? r->layer->bias : NULL;
    const qk_quadratic both[2] = {moments[QK_FITTED], moments[qk_judging_set(p)]};
    qk_least_squares_result descended = {.weight_q = r->weight_q, .bias_q = r->bias_q};
    QK_TRY(qk_least_squares_on(both, &from, &options, p->pool, &descended));
    offer(r, r->weight_q, r->bias_q);
    return QK_OK;
}

static int64_t outputs_taken(const qk_training_result *r) {
    int64_t count = 0;
    for (int64_t row = 0; row < r->problem->rows; row++) count += r->took[row];
    return count;
}

qk_status qk_finish(qk_training_result *r, const qk_variables *v) {
    const qk_training_problem *p = r->problem;
    qk_gradient_result *best = r->best;
    qk_round_variables(v, r->weight_q);
    if (qk_trains_bias(p)) {
        for (int64_t i = 0; i < p->weights; i++)
            r->layer->weight[i] = qk_dequantized(p->start, p->inputs, i, r->weight_q[i]);
        if (!v->rules->steps_bias) QK_TRY(fit_bias(r));
        for (int64_t row = 0; row < p->rows; row++) r->bias_q[row] = integer_bias(p->start, row, r->layer->bias[row]);
    }
    const int64_t trained = offer(r, r->weight_q, r->bias_q), before = outputs_taken(r);
    QK_TRY(descend(r, v->rules->rounding));
    best->improved = outputs_taken(r);
    best->trained = trained + best->improved - before;
    qk_use_integers(r->layer, p, best->weight_q, qk_trains_bias(p) ? best->bias_q : NULL);
    for (int set = 0; set < 2; set++) {
        best->after[set] = qk_judge_loss(r->judge, r->layer, (qk_set)set, (qk_summary){0});
        best->samples[set] = p->count[set];
    }
    return QK_OK;
}
