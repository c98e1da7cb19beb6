/* From a panel of rows to sums: G += X X', C += Y X', and the sums of X, Y and Y^2. */
#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "finetune/layer.h"
#include "kernels/kernels.h"

enum {
    STRIP = 64,    /* lines of G or C: the unit of work, the same for any number of threads */
    COLUMNS = 512, /* of bytes that are made floats at a time */
    SHORT_K = 32,  /* up to here, with one output per group (depthwise), the panel kernel beats BLAS */
};

typedef struct {
    const qk_layer *layer;
    qk_sums *sums;
    int64_t strips_g, strips_c; /* per group */
    float *scratch;             /* (threads, scratch_size) */
    int64_t scratch_size;
} panel_job;

/* Lines of the lower triangle of G. */
static void add_gram_strip(const panel_job *job, int64_t group, int64_t strip, float *scratch) {
    qk_sums *s = job->sums;
    const int64_t K = s->inputs, first = strip * STRIP, ld = s->capacity;
    const int64_t n = first + STRIP < K ? first + STRIP : K, count = n - first;
    double *g = s->gram + group * K * K;
    if (job->layer->as_bytes) {
        qk_kernels_get()->gram_bytes(g, s->bytes + group * K * ld, K, first, n, ld, (size_t)s->used);
        return;
    }
    const float *x = s->x + group * K * ld;
    qk_sgemm(scratch, x + first * ld, x,
             (qk_gemm_shape){.m = count, .n = n, .k = s->used, .lda = ld, .ldb = ld, .ldc = n, .b_transposed = true});
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j <= first + i; j++) g[(first + i) * K + j] += scratch[i * n + j];
}

/* Outputs against all inputs. */
static void add_cross_strip(const panel_job *job, int64_t group, int64_t strip, float *scratch) {
    const qk_sums *s = job->sums;
    const int64_t K = s->inputs, O = job->layer->geometry.outputs, first = strip * STRIP, ld = s->capacity;
    const int64_t count = O - first < STRIP ? O - first : STRIP;
    qk_sgemm(scratch, s->y + (group * O + first) * ld, s->x + group * K * ld,
             (qk_gemm_shape){.m = count, .n = K, .k = s->used, .lda = ld, .ldb = ld, .ldc = K, .b_transposed = true});
    double *c = s->cross + (group * O + first) * K;
    for (int64_t i = 0; i < count * K; i++) c[i] += scratch[i];
}

/* All outputs against inputs that are bytes: some columns at a time as floats, which stay in a cache. */
static void add_byte_cross_strip(const panel_job *job, int64_t group, int64_t strip, float *scratch) {
    const qk_sums *s = job->sums;
    const qk_affine whole = {1, job->layer->affine.zero_point};
    const int64_t K = s->inputs, O = job->layer->geometry.outputs, first = strip * STRIP, ld = s->capacity;
    const int64_t count = K - first < STRIP ? K - first : STRIP;
    const uint8_t *bytes = s->bytes + (group * K + first) * ld;
    float *x = scratch, *product = scratch + STRIP * COLUMNS;
    for (int64_t at = 0; at < s->used; at += COLUMNS) {
        const int64_t n = s->used - at < COLUMNS ? s->used - at : COLUMNS;
        for (int64_t k = 0; k < count; k++)
            qk_kernels_get()->dequantize_u8(x + k * COLUMNS, bytes + k * ld + at, (size_t)n, whole);
        qk_sgemm(product, s->y + group * O * ld + at, x,
                 (qk_gemm_shape){.m = O,
                                 .n = count,
                                 .k = n,
                                 .lda = ld,
                                 .ldb = COLUMNS,
                                 .ldc = count,
                                 .b_transposed = true,
                                 .accumulate = at > 0});
    }
    for (int64_t o = 0; o < O; o++)
        for (int64_t k = 0; k < count; k++) s->cross[(group * O + o) * K + first + k] += product[o * count + k];
}

static void add_vector_sums(const panel_job *job, int64_t group) {
    const qk_kernels *kernels = qk_kernels_get();
    qk_sums *s = job->sums;
    const int64_t K = s->inputs, O = job->layer->geometry.outputs, ld = s->capacity;
    const size_t n = (size_t)s->used;
    for (int64_t k = group * K; k < (group + 1) * K; k++)
        s->sum_x[k] +=
            job->layer->as_bytes ? (double)kernels->sum_bytes(s->bytes + k * ld, n) : kernels->sum(s->x + k * ld, n);
    if (!job->layer->with_target) return;
    for (int64_t o = group * O; o < (group + 1) * O; o++) {
        s->sum_y[o] += kernels->sum(s->y + o * ld, n);
        s->power[o] += kernels->sum_squares(s->y + o * ld, n);
    }
}

/* Tasks of a group: G's strips, the longest first, C's strips, the vector sums. */
static void panel_task(void *context, int64_t task, int worker) {
    const panel_job *job = context;
    const int64_t per_group = job->strips_g + job->strips_c + 1, group = task / per_group, t = task % per_group;
    float *scratch = job->scratch + worker * job->scratch_size;
    if (t < job->strips_g)
        add_gram_strip(job, group, job->strips_g - 1 - t, scratch);
    else if (t == per_group - 1)
        add_vector_sums(job, group);
    else if (job->layer->as_bytes)
        add_byte_cross_strip(job, group, t - job->strips_g, scratch);
    else
        add_cross_strip(job, group, t - job->strips_g, scratch);
}

static void short_panel_task(void *context, int64_t group, int worker) {
    (void)worker;
    const panel_job *job = context;
    const qk_kernels *kernels = qk_kernels_get();
    qk_sums *s = job->sums;
    const int64_t K = s->inputs, ld = s->capacity;
    const float *y = job->layer->with_target ? s->y + group * ld : NULL;
    double *gram = s->gram + group * K * K, *cross = s->cross + group * K;
    add_vector_sums(job, group);
    if (!job->layer->as_bytes) {
        kernels->gram_panel(gram, cross, s->x + group * K * ld, y, K, ld, (size_t)s->used);
        return;
    }
    const uint8_t *bytes = s->bytes + group * K * ld;
    kernels->gram_bytes(gram, bytes, K, 0, K, ld, (size_t)s->used);
    for (int64_t k = 0; k < K && y; k++)
        cross[k] += kernels->dot_bytes(bytes + k * ld, job->layer->affine.zero_point, y, (size_t)s->used);
}

static int64_t strips_of(int64_t lines) { return qk_ceil_div(lines, STRIP); }

qk_status qk_layer_add_panel(const qk_layer *layer, qk_sums *sums, qk_pool *pool) {
    if (sums->used == 0) return QK_OK;
    const qk_geometry *g = &layer->geometry;
    panel_job job = {.layer = layer, .sums = sums};
    if (g->outputs == 1 && sums->inputs <= SHORT_K) {
        qk_pool_run(pool, short_panel_task, &job, g->groups);
    } else {
        job.strips_g = strips_of(sums->inputs);
        if (layer->with_target && sums->inputs > 0)
            job.strips_c = layer->as_bytes ? job.strips_g : strips_of(g->outputs);
        job.scratch_size = layer->as_bytes ? STRIP * (COLUMNS + g->outputs) : STRIP * sums->inputs;
        job.scratch = QK_NEW(float, qk_pool_threads(pool), job.scratch_size);
        if (!job.scratch) return QK_E_NOMEM;
        qk_blas_enter();
        qk_pool_run(pool, panel_task, &job, g->groups * (job.strips_g + job.strips_c + 1));
        qk_blas_leave();
        free(job.scratch);
    }
    sums->rows += sums->used;
    sums->used = 0;
    return QK_OK;
}
