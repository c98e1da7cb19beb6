/* Between the arrays of a batch, a line per output, and lanes, where outputs stand side by side. */
#include "solvers/integer_problem.h"

#include <math.h>

#include "ops/quantized_weight.h"
#include "solvers/candidate.h"

int64_t qk_lane_arrays_size(int64_t count, int64_t scales) { return (3 * count + 2 * scales) * QK_LANES; }

qk_lane_arrays qk_lane_arrays_in(float *memory, int64_t count, int64_t scales) {
    float *lo = memory + count * QK_LANES, *hi = lo + count * QK_LANES, *scale = hi + count * QK_LANES;
    return (qk_lane_arrays){.q = memory, .lo = lo, .hi = hi, .scale = scale, .zp = scale + scales * QK_LANES};
}

/* The integers that a weight may take. */
static void set_box(const qk_batch *batch, int64_t weight, float *lo, float *hi) {
    const qk_quantized_layer *l = batch->start;
    *lo = (float)l->qmin;
    *hi = (float)l->qmax;
    if (batch->box == QK_BOX_FREE) return;
    const int64_t scale = qk_scale_of(l, batch->inputs, weight);
    const double below = floor((double)(l->weight[weight] / l->weight_scale[scale])) + l->weight_zp[scale];
    *lo = (float)qk_clip(below, l->qmin, l->qmax);
    *hi = (float)qk_clip(below + 1, l->qmin, l->qmax);
}

void qk_lanes_from(const qk_batch *batch, const qk_batch_block *block, const float *q, int64_t begin, int64_t end,
                   qk_lane_arrays to) {
    const qk_quantized_layer *l = batch->start;
    const int64_t K = batch->inputs, count = end - begin, scales = K / qk_scale_block(l, K);
    for (int64_t i = 0; i < count * QK_LANES; i++) to.q[i] = to.lo[i] = to.hi[i] = 0;
    for (int64_t i = 0; i < scales * QK_LANES; i++) {
        to.scale[i] = 1;
        to.zp[i] = 0;
    }
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t row = block->rows.first + i;
        const float *line = q + (block->line + i) * K + begin;
        for (int64_t b = 0; b < scales; b++) {
            to.scale[b * QK_LANES + i] = l->weight_scale[row * scales + b];
            to.zp[b * QK_LANES + i] = (float)l->weight_zp[row * scales + b];
        }
        for (int64_t k = 0; k < count; k++) {
            const int64_t at = k * QK_LANES + i;
            to.q[at] = line[k];
            set_box(batch, row * K + begin + k, &to.lo[at], &to.hi[at]);
        }
    }
}

void qk_lanes_to(const qk_batch *batch, const qk_batch_block *block, qk_lane_arrays from, int64_t begin, int64_t end,
                 float *q) {
    for (int64_t i = 0; i < block->rows.count; i++) {
        float *line = q + (block->line + i) * batch->inputs + begin;
        for (int64_t k = 0; k < end - begin; k++) line[k] = from.q[k * QK_LANES + i];
    }
}
