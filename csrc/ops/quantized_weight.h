/* Which scale and zero point a weight has: those of its row, or of a block of neighbouring inputs in it. */
#ifndef QK_QUANTIZED_WEIGHT_H
#define QK_QUANTIZED_WEIGHT_H

#include <math.h>

#include "qk.h"

/* QK_E_ARG unless the weight's integers can be computed with in float32: at most 2^24 in size, qmin <= qmax. */
qk_status qk_quantized_layer_check(const qk_quantized_layer *l, int64_t rows, int64_t inputs);

static inline double qk_clip(double q, int32_t lo, int32_t hi) { return fmin(fmax(q, lo), hi); }

/* Neighbouring inputs that share a scale; divides K. */
static inline int64_t qk_scale_block(const qk_quantized_layer *l, int64_t inputs) {
    return l->scale_block > 0 ? l->scale_block : inputs;
}

/* Where the scale of a weight stands; `weight` counts through (rows, K). */
static inline int64_t qk_scale_of(const qk_quantized_layer *l, int64_t inputs, int64_t weight) {
    return weight / qk_scale_block(l, inputs);
}

/* scale (q - zero_point) of that weight. */
static inline float qk_dequantized(const qk_quantized_layer *l, int64_t inputs, int64_t weight, int32_t q) {
    const int64_t scale = qk_scale_of(l, inputs, weight);
    return l->weight_scale[scale] * (float)(q - l->weight_zp[scale]);
}

#endif
