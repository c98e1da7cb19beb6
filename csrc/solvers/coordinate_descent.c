#include "solvers/coordinate_descent.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "ops/quantized_weight.h"

typedef struct {
    qk_sweep *sweep;
    int64_t begin, end, parts; /* the strip; parts of the inputs that are brought up to date */
} strip_job;

static void descend_task(void *context, int64_t index, int worker) {
    (void)worker;
    const strip_job *job = context;
    qk_sweep *s = job->sweep;
    const qk_batch_part *block = &s->batch->block[index];
    const int64_t K = s->batch->inputs, count = job->end - job->begin;
    const float *gram = s->matrix + (block->rows.group * K + job->begin) * K + job->begin;
    float scale[QK_STRIP], curvature[QK_STRIP];
    if (s->resting[index]) {
        memset(s->moves + block->line, 0, (size_t)block->rows.count * sizeof *s->moves);
        return;
    }
    for (int64_t k = 0; k < count; k++) curvature[k] = gram[k * K + k];
    for (int64_t i = 0; i < block->rows.count; i++) {
        const int64_t line = block->line + i, at = line * K + job->begin, steps = line * count;
        qk_line_scales(s->batch, block->rows.first + i, job->begin, job->end, scale);
        const qk_line one = {scale, curvature, s->batch->lo + at, s->batch->hi + at, s->q + at, s->lines + at};
        s->moves[line] =
            qk_kernels_get()->descend_line(&one, gram, K, s->which + steps, s->step + steps, (size_t)count);
        s->moved[index] |= s->moves[line] > 0;
    }
}

/* The inputs from .. to - 1 of a piece, none of them in the strip. dense: the steps of all inputs; NULL: few moved. */
static void update_outside(const strip_job *job, const qk_batch_part *piece, const float *dense, int64_t from,
                           int64_t to) {
    const qk_sweep *s = job->sweep;
    const int64_t K = s->batch->inputs, count = job->end - job->begin;
    const float *gram = s->matrix + (piece->rows.group * K + job->begin) * K + from;
    float *lines = s->lines + piece->line * K + from;
    if (from >= to) return;
    if (dense)
        qk_sgemm(lines, dense, gram,
                 (qk_gemm_shape){.m = piece->rows.count,
                                 .n = to - from,
                                 .k = count,
                                 .lda = count,
                                 .ldb = K,
                                 .ldc = K,
                                 .accumulate = true});
    for (int64_t i = 0; i < piece->rows.count && !dense; i++) {
        const int64_t line = piece->line + i, steps = line * count;
        qk_kernels_get()->add_lines(lines + i * K, s->step + steps, s->which + steps, s->moves[line], gram, K,
                                    (size_t)(to - from));
    }
}

/* The steps of a piece, zero where an input did not move. */
static const float *spread_steps(const strip_job *job, const qk_batch_part *piece, float *dense) {
    const qk_sweep *s = job->sweep;
    const int64_t count = job->end - job->begin;
    memset(dense, 0, (size_t)(piece->rows.count * count) * sizeof *dense);
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const int64_t line = piece->line + i;
        for (int32_t m = 0; m < s->moves[line]; m++)
            dense[i * count + s->which[line * count + m]] = s->step[line * count + m];
    }
    return dense;
}

static void update_task(void *context, int64_t task, int worker) {
    enum { PRODUCT_IS_FASTER = 6 }; /* times, per input and output */
    const strip_job *job = context;
    const qk_sweep *s = job->sweep;
    const qk_batch_part *piece = &s->batch->piece[task / job->parts];
    const int64_t K = s->batch->inputs, from = task % job->parts * QK_COLUMNS, to = qk_smaller(from + QK_COLUMNS, K);
    const float *dense = NULL;
    int64_t moves = 0;
    for (int64_t i = 0; i < piece->rows.count; i++) moves += s->moves[piece->line + i];
    if (moves == 0) return;
    if (moves * PRODUCT_IS_FASTER > (job->end - job->begin) * piece->rows.count)
        dense = spread_steps(job, piece, s->dense + worker * QK_PIECE * QK_STRIP);
    update_outside(job, piece, dense, from, qk_smaller(to, job->begin));
    update_outside(job, piece, dense, qk_larger(from, job->end), to);
}

/* Blocks in which nothing moved are left out from now on. Whether one did. */
static bool rest(qk_sweep *sweep) {
    bool any = false;
    for (int64_t b = 0; b < sweep->batch->blocks; b++) {
        sweep->resting[b] = !sweep->moved[b];
        any |= sweep->moved[b];
        sweep->moved[b] = false;
    }
    return any;
}

qk_status qk_coordinate_descent(qk_sweep *sweep, int max_sweeps) {
    const qk_batch *batch = sweep->batch;
    const int64_t K = batch->inputs;
    memset(sweep->resting, 0, (size_t)batch->blocks * sizeof *sweep->resting);
    memset(sweep->moved, 0, (size_t)batch->blocks * sizeof *sweep->moved);
    for (int i = 0; i < max_sweeps; i++) {
        for (int64_t begin = 0; begin < K; begin += QK_STRIP) {
            strip_job job = {sweep, begin, qk_smaller(begin + QK_STRIP, K), qk_ceil_div(K, QK_COLUMNS)};
            QK_TRY(qk_run_tasks(sweep->run, descend_task, &job, batch->blocks));
            if (K > QK_STRIP) QK_TRY(qk_run_tasks(sweep->run, update_task, &job, batch->pieces * job.parts));
        }
        if (!rest(sweep)) break;
    }
    return QK_OK;
}
