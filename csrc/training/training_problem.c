#include "training/training_problem.h"

#include "base/memory.h"
#include "ops/quantized_weight.h"

qk_status qk_training_problem_init(qk_training_problem *p) {
    const qk_geometry *g = &p->data->geometry;
    if (p->data->count == 0) return QK_E_NO_ROWS;
    if (!qk_samples_are_finite(p->data)) return QK_E_NONFINITE;
    p->rows = g->groups * g->outputs;
    p->inputs = g->inputs;
    p->weights = p->rows * g->inputs;
    QK_TRY(qk_quantized_layer_check(p->start, p->rows, p->inputs));
    for (int set = 0; set < 2; set++)
        if (!(p->samples[set] = QK_NEW(int64_t, p->data->count))) return QK_E_NOMEM;
    for (int64_t s = 0; s < p->data->count; s++) {
        const qk_set set = qk_is_held_out(p->data, s) ? QK_HELD_OUT : QK_FITTED;
        p->samples[set][p->count[set]++] = s;
    }
    return QK_OK;
}

void qk_training_problem_destroy(qk_training_problem *p) {
    for (int set = 0; set < 2; set++) free(p->samples[set]);
}

qk_status qk_float_layer_init(qk_float_layer *layer, const qk_training_problem *p) {
    layer->weight = QK_NEW(float, p->weights);
    layer->bias = QK_NEW(float, p->rows);
    if (!layer->weight || !layer->bias) return QK_E_NOMEM;
    qk_use_integers(layer, p, p->start->weight_q, NULL);
    return QK_OK;
}

void qk_float_layer_destroy(qk_float_layer *layer) {
    free(layer->weight);
    free(layer->bias);
}

void qk_use_integers(qk_float_layer *layer, const qk_training_problem *p, const int32_t *weight_q,
                     const int32_t *bias_q) {
    const qk_quantized_layer *l = p->start;
    for (int64_t i = 0; i < p->weights; i++) layer->weight[i] = qk_dequantized(l, p->inputs, i, weight_q[i]);
    for (int64_t r = 0; r < p->rows && l->bias; r++)
        layer->bias[r] = bias_q ? l->bias_scale[r] * (float)bias_q[r] : l->bias[r];
}
