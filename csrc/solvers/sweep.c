#include "solvers/sweep.h"

#include <stdlib.h>

#include "base/memory.h"
#include "ops/quantized_weight.h"

static int64_t scratch_of(int64_t scales) { return qk_lane_arrays_size(QK_STRIP, scales) + 3 * QK_STRIP * QK_LANES; }

qk_status qk_sweep_new(qk_sweep *sweep, qk_run *run, int64_t blocks, int64_t inputs, int64_t scales) {
    const int64_t lines = QK_PRODUCT(blocks, QK_LANES);
    *sweep = (qk_sweep){.run = run};
    sweep->step = QK_NEW(float, lines, qk_smaller(QK_STRIP, inputs));
    sweep->which = QK_NEW(int32_t, lines, qk_smaller(QK_STRIP, inputs));
    sweep->dense = QK_NEW(float, qk_pool_threads(run->pool), QK_PIECE, QK_STRIP);
    sweep->scratch = QK_NEW(float, qk_pool_threads(run->pool), scratch_of(scales));
    sweep->moves = QK_NEW(int32_t, lines);
    sweep->resting = QK_NEW(bool, blocks);
    sweep->moved = QK_NEW(bool, blocks);
    const bool ok = sweep->step && sweep->which && sweep->dense && sweep->scratch && sweep->moves && sweep->resting;
    return ok && sweep->moved ? QK_OK : QK_E_NOMEM;
}

void qk_sweep_destroy(qk_sweep *sweep) {
    void *arrays[] = {sweep->step,  sweep->which,   sweep->dense, sweep->scratch,
                      sweep->moves, sweep->resting, sweep->moved};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static int64_t scales_of(const qk_batch *batch) { return batch->inputs / qk_scale_block(batch->start, batch->inputs); }

qk_strip_lanes qk_strip_lanes_of(const qk_sweep *sweep, int worker) {
    const int64_t scales = scales_of(sweep->batch), size = QK_STRIP * QK_LANES;
    float *scratch = sweep->scratch + worker * scratch_of(scales);
    float *rest = scratch + qk_lane_arrays_size(QK_STRIP, scales);
    return (qk_strip_lanes){qk_lane_arrays_in(scratch, QK_STRIP, scales), rest, rest + size, rest + 2 * size};
}

qk_lanes qk_kernel_lanes(const qk_sweep *sweep, const qk_strip_lanes *lanes, int64_t first, int64_t from) {
    const qk_lane_arrays *a = &lanes->arrays;
    const int64_t at = from * QK_LANES;
    return (qk_lanes){.scale = a->scale,
                      .zp = a->zp,
                      .lo = a->lo + at,
                      .hi = a->hi + at,
                      .q = a->q + at,
                      .scale_block = scales_of(sweep->batch) > 1 ? sweep->batch->start->scale_block : 0,
                      .first = first + from};
}
