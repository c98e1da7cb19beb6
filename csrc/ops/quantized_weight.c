#include "ops/quantized_weight.h"

/* Whether float32 holds each of n integers. */
static bool are_small(const int32_t *q, int64_t n) {
    const int32_t most = 1 << 24;
    bool all = true;
    for (int64_t i = 0; i < n; i++) all &= q[i] >= -most && q[i] <= most;
    return all;
}

qk_status qk_quantized_layer_check(const qk_quantized_layer *l, int64_t rows, int64_t inputs) {
    const int64_t scales = inputs / qk_scale_block(l, inputs);
    const bool sane = l->qmin <= l->qmax && are_small(&l->qmin, 1) && are_small(&l->qmax, 1) &&
                      are_small(l->weight_q, rows * inputs) && are_small(l->weight_zp, rows * scales);
    return sane ? QK_OK : QK_E_ARG;
}
