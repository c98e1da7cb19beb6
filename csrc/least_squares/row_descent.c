#include "least_squares/row_descent.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "least_squares/row_state.h"
#include "ops/quantized_weight.h"

enum { BLOCK = QK_COLUMN_BLOCK };

/* present += step X of the inputs that moved, as many as `moves` in all. */
static void move_rows(const qk_row_state *p, const qk_batch_part *piece, int64_t begin, int64_t n, int64_t moves,
                      const qk_row_workspace *s) {
    enum { PRODUCT_IS_FASTER = 8 }; /* times, per input */
    const qk_row_set *set = &p->set[QK_FITTED];
    const int64_t w = set->width, count = piece->rows.count;
    const float *x = set->x + (piece->rows.group * set->inputs + begin) * w;
    float *present = p->present + piece->line * w;
    if (moves * PRODUCT_IS_FASTER <= count * n) {
        for (int64_t i = 0; i < count; i++)
            qk_kernels_get()->add_lines(present + i * w, s->step + i * BLOCK, s->which + i * BLOCK, s->moves[i], x, w,
                                        (size_t)w);
        return;
    }
    memset(s->target, 0, (size_t)(count * BLOCK) * sizeof *s->target);
    for (int64_t i = 0; i < count; i++)
        for (int32_t m = 0; m < s->moves[i]; m++)
            s->target[i * BLOCK + s->which[i * BLOCK + m]] = s->step[i * BLOCK + m];
    qk_sgemm(present, s->target, x,
             (qk_gemm_shape){.m = count, .n = w, .k = n, .lda = BLOCK, .ldb = w, .ldc = w, .accumulate = true});
}

/* One pass over the inputs begin .. end - 1 of a piece. Whether any moved. */
static bool descend_block(const qk_row_job *job, const qk_batch_part *piece, int64_t begin, int64_t end,
                          const qk_row_workspace *s) {
    const qk_row_state *p = job->p;
    const qk_batch *batch = p->batch;
    const qk_row_set *set = &p->set[QK_FITTED];
    const int64_t K = set->inputs, w = set->width, n = end - begin, at = piece->rows.group * K + begin;
    const float lam = (float)p->lam[piece->rows.group];
    int64_t moves = 0;
    for (int64_t i = 0; i < piece->rows.count; i++) { /* what lam adds to the slopes */
        const int64_t line = (piece->line + i) * K + begin;
        const float *weight = p->start->weight + (piece->rows.first + i) * K + begin;
        for (int64_t k = 0; k < n; k++)
            s->target[i * BLOCK + k] = lam * (batch->w0[line + k] + p->change[line + k] - weight[k]);
    }
    qk_sgemm(s->target, p->present + piece->line * w, set->x + at * w,
             (qk_gemm_shape){.m = piece->rows.count,
                             .n = n,
                             .k = w,
                             .lda = w,
                             .ldb = w,
                             .ldc = BLOCK,
                             .b_transposed = true,
                             .accumulate = true});
    memcpy(s->square, p->squares + at * BLOCK, (size_t)(n * BLOCK) * sizeof *s->square);
    for (int64_t k = 0; k < n; k++) s->curvature[k] = s->square[k * BLOCK + k] += lam;
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const int64_t line = (piece->line + i) * K + begin;
        qk_line_scales(batch, piece->rows.first + i, begin, end, s->scale);
        const qk_line one = {s->scale,         s->curvature,  batch->lo + line,
                             batch->hi + line, job->q + line, s->target + i * BLOCK};
        s->moves[i] = qk_kernels_get()->descend_line(&one, s->square, BLOCK, s->which + i * BLOCK, s->step + i * BLOCK,
                                                     (size_t)n);
        for (int32_t m = 0; m < s->moves[i]; m++) p->change[line + s->which[i * BLOCK + m]] += s->step[i * BLOCK + m];
        moves += s->moves[i];
    }
    if (moves > 0) move_rows(p, piece, begin, n, moves, s);
    return moves > 0;
}

/* A sweep over a piece, if the one before moved anything in it. */
static void sweep_task(void *context, int64_t index, int worker) {
    const qk_row_job *job = context;
    const int64_t K = job->p->base.inputs;
    const qk_row_workspace s = qk_row_workspace_of(job->p, worker);
    bool any = false;
    for (int64_t at = 0; at < K && job->p->partial[index] != 0; at += BLOCK)
        any |= descend_block(job, &job->p->batch->piece[index], at, qk_smaller(at + BLOCK, K), &s);
    job->p->partial[index] = any;
}

qk_status qk_row_descend(qk_problem *problem, float *q, int max_sweeps) {
    qk_row_state *p = (qk_row_state *)problem;
    const int64_t size = p->batch->lines * p->set[QK_FITTED].width;
    qk_row_job job = {.p = p, .q = q};
    if (!p->rounded) qk_row_set_to_start(p, q);
    QK_TRY(qk_row_changes(&job));
    if (p->rounded)
        QK_TRY(qk_row_errors(
            p, (qk_row_product){.p = p, .weights = p->change, .from = p->error[QK_FITTED], .to = p->present}));
    else
        memcpy(p->present, p->error[QK_FITTED], (size_t)size * sizeof *p->present);
    p->rounded = false;
    bool any = true;
    for (int64_t i = 0; i < p->batch->pieces; i++) p->partial[i] = 1;
    for (int sweep = 0; sweep < max_sweeps && any; sweep++) {
        QK_TRY(qk_run_tasks(&p->base.run, sweep_task, &job, p->batch->pieces));
        any = false;
        for (int64_t i = 0; i < p->batch->pieces; i++) any |= p->partial[i] != 0;
    }
    return QK_OK;
}
