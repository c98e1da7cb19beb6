#include "least_squares/row_state.h"

#include <string.h>

#include "base/blas.h"
#include "base/sizes.h"
#include "ops/quantized_weight.h"

enum { BLOCK = QK_COLUMN_BLOCK };

int64_t qk_row_chunks(const qk_row_state *p, int set) { return qk_ceil_div(p->set[set].width, QK_ROW_CHUNK); }

/* Task: of a piece and some rows, to = weights X + from. */
static void product_task(void *context, int64_t task, int worker) {
    (void)worker;
    const qk_row_product *job = context;
    const qk_row_state *p = job->p;
    const qk_row_set *s = &p->set[job->set];
    const int64_t K = s->inputs, w = s->width, chunks = qk_row_chunks(p, job->set),
                  begin = task % chunks * QK_ROW_CHUNK;
    const qk_batch_part *piece = &p->batch->piece[task / chunks];
    const int64_t n = qk_smaller(QK_ROW_CHUNK, w - begin), at = piece->line * w + begin;
    const float *weights = job->weights + (job->by_row ? piece->rows.first : piece->line) * K;
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const float *y = s->y + (piece->rows.first + i) * w + begin;
        for (int64_t j = 0; j < n; j++) job->to[at + i * w + j] = job->from ? job->from[at + i * w + j] : -y[j];
    }
    qk_sgemm(job->to + at, weights, s->x + piece->rows.group * K * w + begin,
             (qk_gemm_shape){.m = piece->rows.count, .n = n, .k = K, .lda = K, .ldb = w, .ldc = w, .accumulate = true});
}

qk_status qk_row_errors(qk_row_state *p, qk_row_product job) {
    return qk_run_tasks(&p->base.run, product_task, &job, p->batch->pieces * qk_row_chunks(p, job.set));
}

int64_t qk_row_scales(const qk_row_state *p) { return p->base.inputs / qk_scale_block(p->start, p->base.inputs); }

int64_t qk_row_workspace_size(const qk_row_state *p) {
    return 3 * QK_PIECE * p->set[QK_FITTED].width + 3 * QK_PIECE * BLOCK + QK_PIECE + BLOCK * BLOCK + 2 * BLOCK +
           3 * BLOCK * QK_LANES + qk_lane_arrays_size(BLOCK, qk_row_scales(p));
}

qk_row_workspace qk_row_workspace_of(const qk_row_state *p, int worker) {
    const int64_t w = p->set[QK_FITTED].width;
    float *at = p->scratch + worker * p->scratch_size;
    qk_row_workspace s;
    s.exact = (double *)at; /* first, for its alignment */
    s.along = at + 2 * QK_PIECE * w;
    s.target = s.along + QK_PIECE * w;
    s.step = s.target + QK_PIECE * BLOCK;
    s.which = (int32_t *)(s.step + QK_PIECE * BLOCK);
    s.moves = s.which + QK_PIECE * BLOCK;
    s.square = (float *)(s.moves + QK_PIECE);
    s.scale = s.square + BLOCK * BLOCK;
    s.curvature = s.scale + BLOCK;
    s.lanes = s.curvature + BLOCK;
    s.moved = s.lanes + BLOCK * QK_LANES;
    s.carried = s.moved + BLOCK * QK_LANES;
    s.arrays = qk_lane_arrays_in(s.carried + BLOCK * QK_LANES, BLOCK, qk_row_scales(p));
    return s;
}

void qk_row_set_to_start(const qk_row_state *p, float *q) {
    memcpy(q, p->batch->q0, (size_t)(p->batch->lines * p->base.inputs) * sizeof *q);
}

/* change = scale (q - q0), for the lines of a block. */
static void change_task(void *context, int64_t index, int worker) {
    (void)worker;
    const qk_row_job *job = context;
    const qk_row_state *p = job->p;
    const qk_batch *batch = p->batch;
    const qk_batch_part *block = &batch->block[index];
    const int64_t K = batch->inputs, width = qk_scale_block(batch->start, K), at = block->line * K;
    const float *scale = batch->start->weight_scale + block->rows.first * (K / width);
    for (int64_t b = 0; b < block->rows.count * (K / width); b++)
        for (int64_t i = at + b * width; i < at + (b + 1) * width; i++)
            p->change[i] = scale[b] * (job->q[i] - batch->q0[i]);
}

qk_status qk_row_changes(const qk_row_job *job) {
    return qk_run_tasks(&job->p->base.run, change_task, (void *)job, job->p->batch->blocks);
}
