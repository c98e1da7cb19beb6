#include "training/trainer.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "ops/quantized_weight.h"

void qk_trainer_destroy(qk_trainer *t) {
    qk_reconstruction_destroy(&t->on);
    qk_reconstruction_destroy(&t->all);
    qk_sample_grams_destroy(&t->grams);
    qk_gram_loss_destroy(&t->gram_loss);
    qk_qdrop_destroy(&t->mixing);
    for (int set = 0; set < 2; set++) qk_quadratic_destroy(&t->moments[set]);
    void *arrays[] = {
        t->order,    t->samples[0], t->samples[1],  t->found.gradient, t->found.slope, t->found.mean_power,
        t->weight,   t->variable,   t->base,        t->first,          t->second,      t->best,
        t->bias,     t->bias_first, t->bias_second, t->best_bias,      t->per_unit,    t->rounding,
        t->row_loss, t->row_slope,  t->row_offered, t->took,           t->row_best,    t->weight_q,
        t->bias_q,   t->sigmoid,    t->real};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static qk_status trainer_allocate(qk_trainer *t) {
    float **by_weight[] = {&t->weight, &t->variable, &t->base,    &t->first,
                           &t->second, &t->best,     &t->sigmoid, &t->found.gradient};
    float **by_row[] = {&t->bias, &t->bias_first, &t->bias_second, &t->best_bias, &t->per_unit, &t->found.slope};
    bool ok = true;
    for (size_t i = 0; i < sizeof by_weight / sizeof *by_weight; i++)
        ok &= (*by_weight[i] = QK_NEW(float, t->weights)) != NULL;
    for (size_t i = 0; i < sizeof by_row / sizeof *by_row; i++) ok &= (*by_row[i] = QK_NEW(float, t->rows)) != NULL;
    for (int set = 0; set < 2; set++) ok &= (t->samples[set] = QK_NEW(int64_t, t->data->count)) != NULL;
    t->order = QK_NEW(int64_t, t->data->count);
    t->weight_q = QK_NEW(int32_t, t->weights);
    t->bias_q = QK_NEW(int32_t, t->rows);
    t->found.mean_power = QK_NEW(double, t->data->geometry.groups, t->inputs);
    t->rounding = QK_NEW(double, t->rows);
    t->row_loss = QK_NEW(double, t->rows);
    t->row_best = QK_NEW(double, t->rows);
    t->row_slope = QK_NEW(double, t->rows);
    t->row_offered = QK_NEW(double, t->rows);
    t->took = QK_NEW(bool, t->rows);
    ok &= t->weight_q && t->bias_q && t->row_offered && t->took && t->order && t->found.mean_power && t->rounding &&
          t->row_loss && t->row_slope && t->row_best;
    return ok ? QK_OK : QK_E_NOMEM;
}

static void set_variables(qk_trainer *t) {
    const qk_quantized_layer *l = t->start;
    for (int64_t i = 0; i < t->weights; i++) {
        const int64_t scale = qk_scale_of(l, t->inputs, i);
        const float steps = l->weight[i] / l->weight_scale[scale], whole = floorf(steps);
        t->weight[i] = qk_dequantized(l, t->inputs, i, l->weight_q[i]);
        t->base[i] = whole + (float)l->weight_zp[scale];
        t->variable[i] = l->weight[i];
        if (t->options->method == QK_ADAROUND) /* the rectified sigmoid gives back the fraction */
            t->variable[i] = (float)-log(1.2 / ((double)(steps - whole) + 0.1) - 1);
    }
    for (int64_t r = 0; r < t->rows; r++) t->bias[r] = l->bias ? l->bias[r] : 0;
}

qk_status qk_trainer_init(qk_trainer *t) {
    const qk_geometry *g = &t->data->geometry;
    if (t->data->count == 0) return QK_E_NO_ROWS;
    if (!qk_samples_are_finite(t->data)) return QK_E_NONFINITE;
    t->rows = g->groups * g->outputs;
    t->inputs = g->inputs;
    t->weights = t->rows * g->inputs;
    QK_TRY(qk_quantized_layer_check(t->start, t->rows, t->inputs));
    QK_TRY(trainer_allocate(t));
    for (int64_t s = 0; s < t->data->count; s++) {
        const qk_set set = qk_is_held_out(t->data, s) ? QK_HELD_OUT : QK_FITTED;
        t->samples[set][t->count[set]++] = s;
    }
    memcpy(t->order, t->samples[QK_FITTED], (size_t)t->count[QK_FITTED] * sizeof *t->order);
    if (t->options->batch_size > t->count[QK_FITTED]) return QK_E_ARG;
    const int64_t batch = t->options->batch_size;
    QK_TRY(qk_reconstruction_init(&t->on, t->data, batch, batch, t->pool));
    QK_TRY(qk_reconstruction_init(&t->all, t->data, QK_EVALUATED, 0, t->pool));
    if (qk_mixes(t)) {
        if (!t->data->x_float[0].data) return QK_E_ARG;
        QK_TRY(qk_qdrop_init(&t->mixing, t->data, t->options->drop_ratio, t->options->seed, t->options->batch_size));
    }
    set_variables(t);
    return QK_OK;
}
