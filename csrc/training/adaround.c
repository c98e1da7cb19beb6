/* AdaRound (Nagel et al., arXiv 2004.10568): each weight is rounded down or up. Its variable alpha stands for a soft
 * choice h between the two, the rectified sigmoid of alpha, which a regulariser 1 - |2h - 1|^beta pulls to an end once
 * the loop is warm; beta falls from step to step. */
#include <math.h>

#include "ops/quantized_weight.h"
#include "training/schedule.h"
#include "training/variables.h"

/* What reg_param 0.01 means: pulling a weight from the middle of its range to an end outweighs one unit U of loss. */
static const double UNITS_PER_REG_PARAM = 100;

static void begin(qk_variables *v) {
    const qk_quantized_layer *l = v->problem->start;
    for (int64_t i = 0; i < v->problem->weights; i++) {
        const int64_t scale = qk_scale_of(l, v->problem->inputs, i);
        const float steps = l->weight[i] / l->weight_scale[scale], whole = floorf(steps);
        v->base[i] = whole + (float)l->weight_zp[scale];
        /* The rectified sigmoid gives back the fraction. */
        v->variable[i] = (float)-log(1.2 / ((double)(steps - whole) + 0.1) - 1);
    }
}

static void schedule(const qk_gradient_options *o, int64_t it, qk_step *step) {
    const qk_schedule s = {o->iterations, o->warm_start, o->beta_start, o->beta_end};
    step->counts = qk_schedule_is_warm(&s, it);
    step->penalty = step->counts ? (float)(UNITS_PER_REG_PARAM * o->reg_param) : 0;
    step->beta = (float)qk_schedule_beta(&s, it);
}

static qk_soft_rounding part(qk_variables *v, int64_t at) {
    const qk_quantized_layer *l = v->problem->start;
    const int64_t scale = qk_scale_of(l, v->problem->inputs, at);
    return (qk_soft_rounding){.alpha = v->variable + at,
                              .m = v->m + at,
                              .v = v->v + at,
                              .sigmoid = v->sigmoid + at,
                              .base = v->base + at,
                              .weight = v->layer->weight + at,
                              .scale = l->weight_scale[scale],
                              .zp = (float)l->weight_zp[scale],
                              .lo = (float)l->qmin,
                              .hi = (float)l->qmax,
                              .penalty = v->step.penalty,
                              .beta = v->step.beta};
}

static void weigh(qk_variables *v, int64_t at, size_t n) {
    const qk_soft_rounding s = part(v, at);
    qk_kernels_get()->soft_rounding_weights(&s, n);
}

static double move(qk_variables *v, int64_t at, size_t n, const float *gradient) {
    const qk_soft_rounding s = part(v, at);
    return qk_kernels_get()->soft_rounding_step(&s, gradient, v->step.adam, n);
}

static double integer(const qk_variables *v, int64_t at) { return (double)v->base[at] + (v->variable[at] >= 0); }

const qk_loop_rules qk_adaround = {.steps_bias = false,
                                   .rounding = QK_FLOOR_OR_CEIL,
                                   .begin = begin,
                                   .schedule = schedule,
                                   .weigh = weigh,
                                   .move = move,
                                   .integer = integer};
