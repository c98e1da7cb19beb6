/* Between the arrays of a batch, a line per output, and lanes, where outputs stand side by side. */
#include "solvers/integer_problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "ops/quantized_weight.h"

int64_t qk_lane_arrays_size(int64_t count, int64_t scales) { return (3 * count + 2 * scales) * QK_LANES; }

qk_lane_arrays qk_lane_arrays_in(float *memory, int64_t count, int64_t scales) {
    float *lo = memory + count * QK_LANES, *hi = lo + count * QK_LANES, *scale = hi + count * QK_LANES;
    return (qk_lane_arrays){.q = memory, .lo = lo, .hi = hi, .scale = scale, .zp = scale + scales * QK_LANES};
}

qk_status qk_batch_new(qk_batch *batch, const qk_quantized_layer *start, int64_t inputs, int64_t blocks) {
    const int64_t lines = QK_PRODUCT(blocks, QK_LANES);
    *batch = (qk_batch){.inputs = inputs, .start = start};
    batch->block = QK_NEW(qk_batch_part, blocks);
    batch->piece = QK_NEW(qk_batch_part, blocks);
    float **arrays[] = {&batch->q0, &batch->w0, &batch->lo, &batch->hi};
    bool ok = batch->block && batch->piece;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        ok &= (*arrays[i] = QK_NEW(float, lines, inputs)) != NULL;
    return ok ? QK_OK : QK_E_NOMEM;
}

void qk_batch_destroy(qk_batch *batch) {
    void *arrays[] = {batch->block, batch->piece, batch->q0, batch->w0, batch->lo, batch->hi};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* The start of a weight, and the integers that it may take. */
static void set_weight(const qk_batch *batch, qk_rounding_range rounding, int64_t weight, int64_t at) {
    const qk_quantized_layer *l = batch->start;
    const int64_t scale = qk_scale_of(l, batch->inputs, weight);
    batch->q0[at] = (float)l->weight_q[weight];
    batch->w0[at] = qk_dequantized(l, batch->inputs, weight, l->weight_q[weight]);
    batch->lo[at] = (float)l->qmin;
    batch->hi[at] = (float)l->qmax;
    if (rounding == QK_ANY_INTEGER) return;
    const double below = floor((double)(l->weight[weight] / l->weight_scale[scale])) + l->weight_zp[scale];
    batch->lo[at] = (float)qk_clip(below, l->qmin, l->qmax);
    batch->hi[at] = (float)qk_clip(below + 1, l->qmin, l->qmax);
}

/* Appends a block to the last piece, where that has room. */
static void add_to_pieces(qk_batch *batch, qk_batch_part block) {
    qk_batch_part *last = batch->pieces > 0 ? &batch->piece[batch->pieces - 1] : NULL;
    if (last && last->rows.group == block.rows.group && last->rows.first + last->rows.count == block.rows.first &&
        last->rows.count + block.rows.count <= QK_PIECE)
        last->rows.count += block.rows.count;
    else
        batch->piece[batch->pieces++] = block;
}

void qk_batch_fill(qk_batch *batch, const qk_quadratic *shape, qk_rounding_range rounding, const int64_t *indices,
                   int64_t count) {
    const int64_t K = batch->inputs;
    batch->lines = batch->pieces = 0;
    batch->blocks = count;
    for (int64_t b = 0; b < count; b++) {
        const qk_batch_part block = {qk_row_block_at(shape, QK_LANES, indices[b]), batch->lines};
        batch->block[b] = block;
        add_to_pieces(batch, block);
        for (int64_t i = 0; i < block.rows.count * K; i++)
            set_weight(batch, rounding, block.rows.first * K + i, batch->lines * K + i);
        batch->lines += block.rows.count;
    }
}

void qk_lanes_from(const qk_batch *batch, const qk_batch_part *block, const float *q, int64_t begin, int64_t end,
                   qk_lane_arrays to) {
    const qk_quantized_layer *l = batch->start;
    const int64_t K = batch->inputs, scales = K / qk_scale_block(l, K);
    qk_lanes_of(batch, block, q, begin, end, to.q);
    qk_lanes_of(batch, block, batch->lo, begin, end, to.lo);
    qk_lanes_of(batch, block, batch->hi, begin, end, to.hi);
    for (int64_t i = 0; i < scales * QK_LANES; i++) {
        const int64_t lane = i % QK_LANES, at = (block->rows.first + lane) * scales + i / QK_LANES;
        to.scale[i] = lane < block->rows.count ? l->weight_scale[at] : 1;
        to.zp[i] = lane < block->rows.count ? (float)l->weight_zp[at] : 0;
    }
}

void qk_lanes_of(const qk_batch *batch, const qk_batch_part *block, const float *lines, int64_t begin, int64_t end,
                 float *to) {
    const float *from = lines + block->line * batch->inputs + begin;
    if (block->rows.count < QK_LANES) memset(to, 0, (size_t)((end - begin) * QK_LANES) * sizeof *to);
    for (int64_t k = 0; k < end - begin; k++)
        for (int64_t i = 0; i < block->rows.count; i++) to[k * QK_LANES + i] = from[i * batch->inputs + k];
}

void qk_lines_of(const qk_batch *batch, const qk_batch_part *block, const float *lanes, int64_t begin, int64_t end,
                 float *to) {
    float *at = to + block->line * batch->inputs + begin;
    for (int64_t i = 0; i < block->rows.count; i++)
        for (int64_t k = 0; k < end - begin; k++) at[i * batch->inputs + k] = lanes[k * QK_LANES + i];
}

void qk_line_scales(const qk_batch *batch, int64_t row, int64_t begin, int64_t end, float *scale) {
    const int64_t K = batch->inputs, width = qk_scale_block(batch->start, K);
    const float *scales = batch->start->weight_scale + row * (K / width);
    for (int64_t k = begin, next; k < end; k = next) {
        next = qk_smaller(end, (k / width + 1) * width);
        for (int64_t i = k; i < next; i++) scale[i - begin] = scales[k / width];
    }
}
