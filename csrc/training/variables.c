#include "training/variables.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "base/sizes.h"
#include "ops/quantized_weight.h"

enum { ROWS_PER_TASK = 16 };

qk_status qk_variables_init(qk_variables *v, const qk_training_problem *p, qk_float_layer *layer) {
    const bool rounds_softly = p->options->method == QK_ADAROUND;
    *v = (qk_variables){.problem = p, .layer = layer, .rules = rounds_softly ? &qk_adaround : &qk_adaquant};
    float **by_weight[] = {&v->variable, &v->m, &v->v, &v->held, &v->best}, **of_adaround[] = {&v->base, &v->sigmoid};
    float **by_row[] = {&v->bias_m, &v->bias_v, &v->held_bias, &v->best_bias, &v->per_unit};
    bool ok = true;
    for (size_t i = 0; i < sizeof by_weight / sizeof *by_weight; i++)
        ok &= (*by_weight[i] = QK_NEW(float, p->weights)) != NULL;
    for (size_t i = 0; i < sizeof of_adaround / sizeof *of_adaround && rounds_softly; i++)
        ok &= (*of_adaround[i] = QK_NEW(float, p->weights)) != NULL;
    for (size_t i = 0; i < sizeof by_row / sizeof *by_row; i++) ok &= (*by_row[i] = QK_NEW(float, p->rows)) != NULL;
    v->regulariser = QK_NEW(double, p->rows);
    if (!ok || !v->regulariser) return QK_E_NOMEM;
    v->rules->begin(v);
    return QK_OK;
}

void qk_variables_destroy(qk_variables *v) {
    void *arrays[] = {v->variable, v->m,         v->v,    v->base,      v->sigmoid,  v->bias_m,     v->bias_v,
                      v->held,     v->held_bias, v->best, v->best_bias, v->per_unit, v->regulariser};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* What a step of one weight adds to the mean square of an output: the mean of scale^2 E[x^2] over its inputs. power
 * (K): E[x^2]. */
static double step_power(const qk_training_problem *p, int64_t r, const double *power) {
    const int64_t K = p->inputs, block = qk_scale_block(p->start, K);
    double sum = 0;
    for (int64_t begin = 0; begin < K; begin += block) {
        const double scale = p->start->weight_scale[qk_scale_of(p->start, K, r * K + begin)];
        double mean = 0;
        for (int64_t k = begin; k < begin + block; k++) mean += power[k] / (double)K;
        sum += scale * scale * mean;
    }
    return sum;
}

void qk_variables_set_units(qk_variables *v, const double *input_power, const double *slope_power) {
    const int64_t outputs = v->problem->data->geometry.outputs;
    for (int64_t r = 0; r < v->problem->rows; r++) {
        const double *power = input_power + r / outputs * v->problem->inputs;
        const float per_unit = (float)(1 / (step_power(v->problem, r, power) * slope_power[r]));
        v->per_unit[r] = isfinite(per_unit) ? per_unit : 0; /* dead inputs or outputs: nothing to train */
    }
}

/* ---- steps ------------------------------------------------------------------------------------- */

static int64_t task_end(const qk_variables *v, int64_t task) {
    return qk_smaller((task + 1) * ROWS_PER_TASK, v->problem->rows);
}

static void weigh_task(void *context, int64_t task, int worker) {
    (void)worker;
    qk_variables *v = context;
    const int64_t K = v->problem->inputs, block = qk_scale_block(v->problem->start, K);
    for (int64_t at = task * ROWS_PER_TASK * K; at < task_end(v, task) * K; at += block)
        v->rules->weigh(v, at, (size_t)block);
}

void qk_weigh_variables(qk_variables *v) {
    qk_pool_run(v->problem->pool, weigh_task, v, qk_ceil_div(v->problem->rows, ROWS_PER_TASK));
}

static void move_row(qk_variables *v, int64_t r) {
    const int64_t K = v->problem->inputs, block = qk_scale_block(v->problem->start, K);
    for (int64_t k = 0; k < K; k++) v->gradient[r * K + k] *= v->per_unit[r];
    v->regulariser[r] = 0;
    for (int64_t at = r * K; at < (r + 1) * K; at += block)
        v->regulariser[r] += v->rules->move(v, at, (size_t)block, v->gradient + at);
}

static void move_task(void *context, int64_t task, int worker) {
    (void)worker;
    qk_variables *v = context;
    for (int64_t r = task * ROWS_PER_TASK; r < task_end(v, task); r++) move_row(v, r);
}

void qk_move_variables(qk_variables *v, int64_t it, float *gradient, float *slope) {
    const qk_training_problem *p = v->problem;
    v->gradient = gradient;
    v->step = (qk_step){.adam = qk_adam_at(p->options->learning_rate, it + 1)};
    v->rules->schedule(p->options, it, &v->step);
    qk_pool_run(p->pool, move_task, v, qk_ceil_div(p->rows, ROWS_PER_TASK));
    if (!slope) return;
    for (int64_t r = 0; r < p->rows; r++) slope[r] *= v->per_unit[r];
    qk_kernels_get()->adam(v->layer->bias, v->bias_m, v->bias_v, slope, v->step.adam, (size_t)p->rows);
}

double qk_watched_loss(const qk_variables *v, double reconstruction) {
    double regulariser = 0;
    for (int64_t r = 0; r < v->problem->rows; r++)
        if (v->per_unit[r] > 0) regulariser += v->regulariser[r] / (double)v->per_unit[r];
    return reconstruction + v->step.penalty * regulariser;
}

void qk_hold_variables(qk_variables *v) {
    memcpy(v->held, v->variable, (size_t)v->problem->weights * sizeof *v->held);
    memcpy(v->held_bias, v->layer->bias, (size_t)v->problem->rows * sizeof *v->held_bias);
}

static void exchange(float **a, float **b) {
    float *const c = *a;
    *a = *b;
    *b = c;
}

void qk_keep_held_variables(qk_variables *v) {
    exchange(&v->held, &v->best);
    exchange(&v->held_bias, &v->best_bias);
    v->has_best = true;
}

void qk_use_best_variables(qk_variables *v) {
    if (!v->has_best) return;
    memcpy(v->variable, v->best, (size_t)v->problem->weights * sizeof *v->variable);
    memcpy(v->layer->bias, v->best_bias, (size_t)v->problem->rows * sizeof *v->best_bias);
}

void qk_round_variables(const qk_variables *v, int32_t *weight_q) {
    const qk_quantized_layer *l = v->problem->start;
    for (int64_t i = 0; i < v->problem->weights; i++)
        weight_q[i] = (int32_t)fmin(fmax(v->rules->integer(v, i), l->qmin), l->qmax);
}
