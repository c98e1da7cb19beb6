/* From a panel of rows to sums: G += X X', C += Y X', and the sums of X, Y and Y^2. */
#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "finetune/layer.h"
#include "kernels/kernels.h"

enum {
    STRIP = 64,   /* lines of G or C: the unit of work, the same for any number of threads */
    SHORT_K = 32, /* up to here, with one output per group (depthwise), the panel kernel beats BLAS */
};

typedef struct {
    const qk_layer *layer;
    qk_sums *sums;
    int64_t strips_k, strips_o; /* per group */
    float *scratch;             /* (threads, STRIP, K') */
} panel_job;

/* The lines of a, `strip` of them being many, times the first n lines of b, over the used columns: into scratch
 * (count, n). Returns the count. */
static int64_t multiply_strip(const panel_job *job, float *scratch, const float *a, int64_t lines, int64_t strip,
                              const float *b, int64_t n) {
    const int64_t ld = job->sums->capacity, first = strip * STRIP;
    const int64_t count = lines - first < STRIP ? lines - first : STRIP;
    qk_sgemm(scratch, a + first * ld, b,
             (qk_gemm_shape){
                 .m = count, .n = n, .k = job->sums->used, .lda = ld, .ldb = ld, .ldc = n, .b_transposed = true});
    return count;
}

/* Lines of the lower triangle of G, and by symmetry their columns. */
static void add_gram_strip(const panel_job *job, int64_t group, int64_t strip, float *scratch) {
    const int64_t K = job->sums->inputs, first = strip * STRIP;
    const int64_t n = first + STRIP < K ? first + STRIP : K;
    const float *x = job->sums->x + group * K * job->sums->capacity;
    double *g = job->sums->gram + group * K * K;
    const int64_t count = multiply_strip(job, scratch, x, K, strip, x, n);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < n; j++) g[(first + i) * K + j] += scratch[i * n + j];
    for (int64_t j = 0; j < first; j++)
        for (int64_t i = 0; i < count; i++) g[j * K + first + i] = g[(first + i) * K + j];
}

static void add_cross_strip(const panel_job *job, int64_t group, int64_t strip, float *scratch) {
    const int64_t K = job->sums->inputs, O = job->layer->geometry.outputs, ld = job->sums->capacity;
    const int64_t count =
        multiply_strip(job, scratch, job->sums->y + group * O * ld, O, strip, job->sums->x + group * K * ld, K);
    double *c = job->sums->cross + (group * O + strip * STRIP) * K;
    for (int64_t i = 0; i < count * K; i++) c[i] += scratch[i];
}

static void add_vector_sums(const panel_job *job, int64_t group) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = job->sums->inputs, O = job->layer->geometry.outputs, ld = job->sums->capacity;
    const size_t n = (size_t)job->sums->used;
    for (int64_t k = group * K; k < (group + 1) * K; k++) job->sums->sum_x[k] += kernels->sum(job->sums->x + k * ld, n);
    if (!job->layer->with_target) return;
    for (int64_t o = group * O; o < (group + 1) * O; o++) {
        job->sums->sum_y[o] += kernels->sum(job->sums->y + o * ld, n);
        job->sums->power[o] += kernels->sum_squares(job->sums->y + o * ld, n);
    }
}

/* Tasks of a group: G's strips, the longest first, C's strips, the vector sums. */
static void panel_task(void *context, int64_t task, int worker) {
    const panel_job *job = context;
    const int64_t per_group = job->strips_k + job->strips_o + 1, group = task / per_group, t = task % per_group;
    float *scratch = job->scratch + (int64_t)worker * STRIP * job->sums->inputs;
    if (t < job->strips_k)
        add_gram_strip(job, group, job->strips_k - 1 - t, scratch);
    else if (t < job->strips_k + job->strips_o)
        add_cross_strip(job, group, t - job->strips_k, scratch);
    else
        add_vector_sums(job, group);
}

static void short_panel_task(void *context, int64_t group, int worker) {
    (void)worker;
    const panel_job *job = context;
    const int64_t K = job->sums->inputs, ld = job->sums->capacity;
    add_vector_sums(job, group);
    qk_kernels_get()->gram_panel(
        job->sums->gram + group * K * K, job->sums->cross + group * K, job->sums->x + group * K * ld,
        job->layer->with_target ? job->sums->y + group * ld : NULL, K, ld, (size_t)job->sums->used);
}

qk_status qk_layer_add_panel(const qk_layer *layer, qk_sums *sums, qk_pool *pool) {
    if (sums->used == 0) return QK_OK;
    const qk_geometry *g = &layer->geometry;
    panel_job job = {.layer = layer, .sums = sums};
    if (g->outputs == 1 && sums->inputs <= SHORT_K) {
        qk_pool_run(pool, short_panel_task, &job, g->groups);
    } else {
        job.strips_k = (sums->inputs + STRIP - 1) / STRIP;
        job.strips_o = layer->with_target && sums->inputs > 0 ? (g->outputs + STRIP - 1) / STRIP : 0;
        job.scratch = QK_NEW(float, (int64_t)qk_pool_threads(pool) * STRIP * sums->inputs);
        if (!job.scratch) return QK_E_NOMEM;
        qk_blas_enter();
        qk_pool_run(pool, panel_task, &job, g->groups * (job.strips_k + job.strips_o + 1));
        qk_blas_leave();
        free(job.scratch);
    }
    sums->rows += sums->used;
    sums->used = 0;
    return QK_OK;
}
