#include "least_squares/row_gptq.h"

#include <string.h>

#include "base/blas.h"
#include "kernels/kernels.h"
#include "least_squares/row_state.h"

enum { BLOCK = QK_COLUMN_BLOCK };

static qk_lanes kernel_lanes(const qk_row_state *p, const qk_row_workspace *s, int64_t first) {
    const qk_lane_arrays *a = &s->arrays;
    const int64_t scale_block = qk_row_scales(p) > 1 ? p->start->scale_block : 0;
    return (qk_lanes){a->scale, a->zp, a->lo, a->hi, a->q, scale_block, first};
}

/* Between a block's lines (count, BLOCK) of a piece and lanes (n, QK_LANES). */
static void to_lanes(float *lanes, const float *lines, int64_t count, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < QK_LANES; i++) lanes[k * QK_LANES + i] = i < count ? lines[i * BLOCK + k] : 0;
}

static void to_lines(float *lines, const float *lanes, int64_t count, int64_t n) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < n; k++) lines[i * BLOCK + k] = lanes[k * QK_LANES + i];
}

/* The blocks of a piece, which are neighbours. */
static int64_t first_block(const qk_batch *batch, const qk_batch_part *piece) {
    int64_t b = 0;
    while (batch->block[b].line != piece->line) b++;
    return b;
}

/* The inputs begin .. end - 1 of a piece: rounds its targets, s->target; the errors made become s->step. */
static void round_block(const qk_row_job *job, const qk_batch_part *piece, int64_t begin, int64_t end, const float *l,
                        const qk_row_workspace *s) {
    const qk_row_state *p = job->p;
    const qk_batch *batch = p->batch;
    for (int64_t b = first_block(batch, piece), done = 0; done < piece->rows.count; b++) {
        const qk_batch_part *block = &batch->block[b];
        qk_lanes_from(batch, block, batch->q0, begin, end, s->arrays);
        to_lanes(s->lanes, s->target + done * BLOCK, block->rows.count, end - begin);
        memset(s->carried, 0, (size_t)(BLOCK * QK_LANES) * sizeof *s->carried);
        const qk_lanes lanes = kernel_lanes(p, s, begin);
        qk_kernels_get()->round_carrying(&lanes, s->lanes, l, BLOCK, s->carried, s->moved, (size_t)(end - begin));
        qk_lines_of(batch, block, s->arrays.q, begin, end, job->q);
        to_lines(s->step + done * BLOCK, s->moved, block->rows.count, end - begin);
        done += block->rows.count;
    }
}

/* The target of what is left is W + a X: a starts at - r M^-1 with r of the float weight, which is the shifted target
 * W*, and every block adds - d L T'. */
static void round_task(void *context, int64_t index, int worker) {
    const qk_row_job *job = context;
    qk_row_state *p = job->p;
    const qk_row_set *set = &p->set[QK_FITTED];
    const qk_row_factor *f = p->damped;
    const qk_batch_part *piece = &p->batch->piece[index];
    const int64_t K = set->inputs, w = set->width, count = piece->rows.count, group = piece->rows.group;
    const qk_row_workspace s = qk_row_workspace_of(p, worker);
    if (!f->sound[group]) return;
    for (int64_t i = 0; i < count * w; i++) s.exact[i] = -(double)p->float_error[piece->line * w + i];
    qk_cholesky_solve(s.exact, count, f->root + group * w * w, w);
    for (int64_t i = 0; i < count * w; i++) s.along[i] = (float)s.exact[i];
    for (int64_t end = K, begin; end > 0; end = begin) {
        begin = (end - 1) / BLOCK * BLOCK;
        const int64_t n = end - begin, line = group * K + begin;
        for (int64_t i = 0; i < count; i++)
            memcpy(s.target + i * BLOCK, p->start->weight + (piece->rows.first + i) * K + begin,
                   (size_t)n * sizeof *s.target);
        qk_sgemm(s.target, s.along, set->x + line * w,
                 (qk_gemm_shape){.m = count,
                                 .n = n,
                                 .k = w,
                                 .lda = w,
                                 .ldb = w,
                                 .ldc = BLOCK,
                                 .b_transposed = true,
                                 .accumulate = true});
        round_block(job, piece, begin, end, f->l + line * BLOCK, &s);
        if (begin == 0) break;
        qk_sgemm(s.target, s.step, f->l + line * BLOCK,
                 (qk_gemm_shape){.m = count, .n = n, .k = n, .lda = BLOCK, .ldb = BLOCK, .ldc = BLOCK});
        for (int64_t i = 0; i < count * BLOCK; i++) s.target[i] = -s.target[i];
        qk_sgemm(s.along, s.target, f->t + line * w,
                 (qk_gemm_shape){.m = count, .n = w, .k = n, .lda = BLOCK, .ldb = w, .ldc = w, .accumulate = true});
    }
}

qk_status qk_row_round(qk_problem *problem, float *q) {
    qk_row_state *p = (qk_row_state *)problem;
    qk_row_job job = {.p = p, .q = q};
    qk_row_set_to_start(p, q);
    p->rounded = true;
    return qk_run_tasks(&p->base.run, round_task, &job, p->batch->pieces);
}
