/* From a panel of rows to sums: G += X X', C += Y X', and the sums of X, Y and Y^2. */
#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "finetune/layer.h"
#include "kernels/kernels.h"

enum {
    TILE = 128,   /* of G and C: the unit of work, the same for any number of threads */
    SHORT_K = 32, /* up to here, with one output per group (depthwise), the panel kernel beats BLAS */
};

typedef struct {
    qk_layer *layer;
    qk_sums *sums;
    int64_t tiles_k, tiles_o, tasks_per_group;
    float *scratch; /* (threads, TILE, TILE) */
} panel_job;

static int64_t tile_size(int64_t i, int64_t n) { return n - i * TILE < TILE ? n - i * TILE : TILE; }

static void add_tile(double *to, int64_t ld, const float *from, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) to[i * ld + j] += from[i * n + j];
}

/* One tile of a(m,:) b(n,:)' over the used columns, into scratch (m,n). */
static void multiply_tile(const panel_job *job, float *scratch, const float *a, const float *b, int64_t m, int64_t n) {
    const int64_t ld = job->layer->capacity;
    qk_sgemm(
        scratch, a, b,
        (qk_gemm_shape){.m = m, .n = n, .k = job->sums->used, .lda = ld, .ldb = ld, .ldc = n, .b_transposed = true});
}

static void add_gram_tile(const panel_job *job, int64_t group, int64_t ti, int64_t tj, float *scratch) {
    const int64_t K = job->layer->geometry.inputs, ld = job->layer->capacity;
    const int64_t m = tile_size(ti, K), n = tile_size(tj, K);
    const float *x = job->sums->x + group * K * ld;
    double *g = job->sums->gram + group * K * K;
    multiply_tile(job, scratch, x + ti * TILE * ld, x + tj * TILE * ld, m, n);
    add_tile(g + ti * TILE * K + tj * TILE, K, scratch, m, n);
    if (ti == tj) return;
    for (int64_t i = 0; i < m; i++) /* G is symmetric */
        for (int64_t j = 0; j < n; j++) g[(tj * TILE + j) * K + ti * TILE + i] += scratch[i * n + j];
}

static void add_cross_tile(const panel_job *job, int64_t group, int64_t to, int64_t tk, float *scratch) {
    const int64_t K = job->layer->geometry.inputs, O = job->layer->geometry.outputs, ld = job->layer->capacity;
    const int64_t m = tile_size(to, O), n = tile_size(tk, K);
    multiply_tile(job, scratch, job->sums->y + (group * O + to * TILE) * ld,
                  job->sums->x + (group * K + tk * TILE) * ld, m, n);
    add_tile(job->sums->cross + (group * O + to * TILE) * K + tk * TILE, K, scratch, m, n);
}

static void add_vector_sums(const panel_job *job, int64_t group) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = job->layer->geometry.inputs, O = job->layer->geometry.outputs, ld = job->layer->capacity;
    const size_t n = (size_t)job->sums->used;
    for (int64_t k = group * K; k < (group + 1) * K; k++) job->sums->sum_x[k] += kernels->sum(job->sums->x + k * ld, n);
    if (!job->layer->with_target) return;
    for (int64_t o = group * O; o < (group + 1) * O; o++) {
        job->sums->sum_y[o] += kernels->sum(job->sums->y + o * ld, n);
        job->sums->power[o] += kernels->sum_squares(job->sums->y + o * ld, n);
    }
}

/* Tasks of a group: the vector sums, then the lower triangle of G's tiles, then C's tiles. */
static void panel_task(void *context, int64_t task, int worker) {
    const panel_job *job = context;
    const int64_t group = task / job->tasks_per_group;
    int64_t t = task % job->tasks_per_group;
    float *scratch = job->scratch + (int64_t)worker * TILE * TILE;
    if (t-- == 0) {
        add_vector_sums(job, group);
        return;
    }
    for (int64_t ti = 0; ti < job->tiles_k; t -= ++ti)
        if (t <= ti) {
            add_gram_tile(job, group, ti, t, scratch);
            return;
        }
    add_cross_tile(job, group, t / job->tiles_k, t % job->tiles_k, scratch);
}

static void short_panel_task(void *context, int64_t group, int worker) {
    (void)worker;
    const panel_job *job = context;
    const int64_t K = job->layer->geometry.inputs, ld = job->layer->capacity;
    add_vector_sums(job, group);
    qk_kernels_get()->gram_panel(
        job->sums->gram + group * K * K, job->sums->cross + group * K, job->sums->x + group * K * ld,
        job->layer->with_target ? job->sums->y + group * ld : NULL, K, ld, (size_t)job->sums->used);
}

qk_status qk_layer_add_panel(qk_layer *layer, qk_set set, qk_pool *pool) {
    qk_sums *sums = &layer->sets[set];
    if (sums->used == 0) return QK_OK;
    const qk_geometry *g = &layer->geometry;
    panel_job job = {.layer = layer, .sums = sums};
    if (g->outputs == 1 && g->inputs <= SHORT_K) {
        qk_pool_run(pool, short_panel_task, &job, g->groups);
    } else {
        job.tiles_k = (g->inputs + TILE - 1) / TILE;
        job.tiles_o = layer->with_target ? (g->outputs + TILE - 1) / TILE : 0;
        job.tasks_per_group = 1 + job.tiles_k * (job.tiles_k + 1) / 2 + job.tiles_o * job.tiles_k;
        job.scratch = QK_NEW(float, (int64_t)qk_pool_threads(pool) * TILE * TILE);
        if (!job.scratch) return QK_E_NOMEM;
        qk_blas_enter();
        qk_pool_run(pool, panel_task, &job, g->groups * job.tasks_per_group);
        qk_blas_leave();
        free(job.scratch);
    }
    sums->rows += sums->used;
    sums->used = 0;
    return QK_OK;
}
