/* AdaQuant (Hubara et al., arXiv 2006.10518): the float weight itself is the variable, rounding passes its gradient
 * straight through, and a weight may become any integer of the grid. The bias moves with the weights. */
#include <math.h>
#include <string.h>

#include "ops/quantized_weight.h"
#include "training/variables.h"

static void begin(qk_variables *v) {
    memcpy(v->variable, v->problem->start->weight, (size_t)v->problem->weights * sizeof *v->variable);
}

static void schedule(const qk_gradient_options *o, int64_t it, qk_step *step) {
    (void)o;
    (void)it;
    step->counts = true;
}

static qk_straight_through part(qk_variables *v, int64_t at) {
    const qk_quantized_layer *l = v->problem->start;
    const int64_t scale = qk_scale_of(l, v->problem->inputs, at);
    return (qk_straight_through){.real = v->variable + at,
                                 .m = v->m + at,
                                 .v = v->v + at,
                                 .weight = v->layer->weight + at,
                                 .scale = l->weight_scale[scale],
                                 .zp = (float)l->weight_zp[scale],
                                 .lo = (float)l->qmin,
                                 .hi = (float)l->qmax};
}

static void weigh(qk_variables *v, int64_t at, size_t n) {
    const qk_straight_through s = part(v, at);
    qk_kernels_get()->straight_through_weights(&s, n);
}

static double move(qk_variables *v, int64_t at, size_t n, const float *gradient) {
    const qk_straight_through s = part(v, at);
    qk_kernels_get()->straight_through_step(&s, gradient, v->step.adam, n);
    return 0;
}

static double integer(const qk_variables *v, int64_t at) {
    const qk_quantized_layer *l = v->problem->start;
    const int64_t scale = qk_scale_of(l, v->problem->inputs, at);
    return rint((double)(v->variable[at] / l->weight_scale[scale])) + l->weight_zp[scale];
}

const qk_loop_rules qk_adaquant = {.steps_bias = true,
                                   .rounding = QK_ANY_INTEGER,
                                   .begin = begin,
                                   .schedule = schedule,
                                   .weigh = weigh,
                                   .move = move,
                                   .integer = integer};
