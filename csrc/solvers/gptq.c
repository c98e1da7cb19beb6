#include "solvers/gptq.h"

#include "base/blas.h"
#include "base/memory.h"

typedef struct {
    qk_sweep *sweep;
    float *errors;
    int64_t begin, end, parts; /* the strip; parts of the inputs */
} strip_job;

static const float *factor_of(const strip_job *job, const qk_batch_part *part) {
    const int64_t K = job->sweep->batch->inputs;
    return job->sweep->matrix + part->rows.group * K * K;
}

/* ---- c = L^-1 of the slope ------------------------------------------------------------------- */

static void solve_task(void *context, int64_t index, int worker) {
    (void)worker;
    const strip_job *job = context;
    const qk_batch_part *piece = &job->sweep->batch->piece[index];
    const int64_t K = job->sweep->batch->inputs;
    qk_strsm(job->sweep->lines + piece->line * K + job->begin, piece->rows.count,
             factor_of(job, piece) + job->begin * K + job->begin, job->end - job->begin, K, K);
}

/* What the strip's part of c takes from the inputs behind it. */
static void take_task(void *context, int64_t task, int worker) {
    (void)worker;
    const strip_job *job = context;
    const qk_batch_part *piece = &job->sweep->batch->piece[task / job->parts];
    const int64_t K = job->sweep->batch->inputs, first = task % job->parts * QK_COLUMNS;
    const int64_t from = qk_larger(first, job->end), to = qk_smaller(first + QK_COLUMNS, K);
    float *lines = job->sweep->lines + piece->line * K;
    if (from >= to) return;
    qk_sgemm(lines + from, lines + job->begin, factor_of(job, piece) + from * K + job->begin,
             (qk_gemm_shape){.m = piece->rows.count,
                             .n = to - from,
                             .k = job->end - job->begin,
                             .lda = K,
                             .ldb = K,
                             .ldc = K,
                             .b_transposed = true,
                             .accumulate = true,
                             .negative = true});
}

/* ---- rounding -------------------------------------------------------------------------------- */

/* carried += L[block]' d for the inputs of a strip before a block. */
static void carry_on(float *carried, const float *d, const float *l, int64_t K, int64_t begin, int64_t end) {
    if (begin == 0) return;
    qk_sgemm(carried, l + begin * K, d + begin * QK_LANES,
             (qk_gemm_shape){.m = begin,
                             .n = QK_LANES,
                             .k = end - begin,
                             .lda = K,
                             .ldb = QK_LANES,
                             .ldc = QK_LANES,
                             .a_transposed = true,
                             .accumulate = true});
}

static void round_task(void *context, int64_t index, int worker) {
    const strip_job *job = context;
    qk_sweep *s = job->sweep;
    const qk_batch_part *block = &s->batch->block[index];
    const int64_t K = s->batch->inputs, count = job->end - job->begin;
    const float *l = factor_of(job, block) + job->begin * K + job->begin;
    const qk_strip_lanes lanes = qk_strip_lanes_of(s, worker);
    qk_lanes_from(s->batch, block, s->q, job->begin, job->end, lanes.arrays);
    qk_lanes_of(s->batch, block, s->lines, job->begin, job->end, lanes.line);
    qk_lanes_of(s->batch, block, s->batch->w0, job->begin, job->end, lanes.target);
    for (int64_t b = qk_ceil_div(count, QK_COLUMN_BLOCK) - 1; b >= 0; b--) {
        const int64_t begin = b * QK_COLUMN_BLOCK, end = qk_smaller(begin + QK_COLUMN_BLOCK, count);
        const int64_t at = begin * QK_LANES;
        const qk_lanes some = qk_kernel_lanes(s, &lanes, job->begin, begin);
        qk_kernels_get()->round_carrying(&some, lanes.target + at, l + begin * K + begin, K, lanes.line + at,
                                         lanes.step + at, (size_t)(end - begin));
        carry_on(lanes.line, lanes.step, l, K, begin, end);
    }
    for (int64_t k = 0; k < count; k++)
        for (int i = 0; i < QK_LANES; i++) lanes.line[k * QK_LANES + i] += l[k * K + k] * lanes.step[k * QK_LANES + i];
    for (int64_t i = 0; i < block->rows.count; i++)
        for (int64_t k = 0; k < count; k++) s->step[(block->line + i) * count + k] = lanes.step[k * QK_LANES + i];
    qk_lines_of(s->batch, block, lanes.arrays.q, job->begin, job->end, s->q);
    qk_lines_of(s->batch, block, lanes.line, job->begin, job->end, job->errors);
}

/* lines += d L[strip] for inputs before the strip. */
static void carry_task(void *context, int64_t task, int worker) {
    (void)worker;
    const strip_job *job = context;
    const qk_batch_part *piece = &job->sweep->batch->piece[task / job->parts];
    const int64_t K = job->sweep->batch->inputs, count = job->end - job->begin;
    const int64_t from = task % job->parts * QK_COLUMNS, to = qk_smaller(from + QK_COLUMNS, job->begin);
    qk_sgemm(
        job->sweep->lines + piece->line * K + from, job->sweep->step + piece->line * count,
        factor_of(job, piece) + job->begin * K + from,
        (qk_gemm_shape){
            .m = piece->rows.count, .n = to - from, .k = count, .lda = count, .ldb = K, .ldc = K, .accumulate = true});
}

/* ---- the slope at q -------------------------------------------------------------------------- */

/* lines = errors L', for the inputs of one strip. */
static void slope_task(void *context, int64_t task, int worker) {
    (void)worker;
    const strip_job *job = context;
    const qk_batch_part *piece = &job->sweep->batch->piece[task / job->parts];
    const int64_t K = job->sweep->batch->inputs, begin = task % job->parts * QK_STRIP;
    const int64_t end = qk_smaller(begin + QK_STRIP, K);
    qk_sgemm(
        job->sweep->lines + piece->line * K + begin, job->errors + piece->line * K, factor_of(job, piece) + begin * K,
        (qk_gemm_shape){
            .m = piece->rows.count, .n = end - begin, .k = end, .lda = K, .ldb = K, .ldc = K, .b_transposed = true});
}

qk_status qk_gptq(qk_sweep *sweep, float *errors) {
    const qk_batch *batch = sweep->batch;
    const int64_t K = batch->inputs, strips = qk_ceil_div(K, QK_STRIP);
    strip_job job = {.sweep = sweep, .errors = errors, .parts = qk_ceil_div(K, QK_COLUMNS)};
    for (job.begin = 0; job.begin < K; job.begin = job.end) {
        job.end = qk_smaller(job.begin + QK_STRIP, K);
        QK_TRY(qk_run_tasks(sweep->run, solve_task, &job, batch->pieces));
        if (job.end < K) QK_TRY(qk_run_tasks(sweep->run, take_task, &job, batch->pieces * job.parts));
    }
    for (int64_t strip = strips - 1; strip >= 0; strip--) {
        job.begin = strip * QK_STRIP;
        job.end = qk_smaller(job.begin + QK_STRIP, K);
        job.parts = qk_ceil_div(job.begin, QK_COLUMNS);
        QK_TRY(qk_run_tasks(sweep->run, round_task, &job, batch->blocks));
        QK_TRY(qk_run_tasks(sweep->run, carry_task, &job, batch->pieces * job.parts));
    }
    job.parts = strips;
    return qk_run_tasks(sweep->run, slope_task, &job, batch->pieces * strips);
}
