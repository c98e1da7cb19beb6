/* From a panel of rows to sums: G += X X', C += Y X', and the sums of X, Y and Y^2. */
#include "moments/panel_sums.h"

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "moments/layer.h"

enum {
    STRIP = 64,    /* lines of G or C: the unit of work, the same for any number of threads */
    COLUMNS = 256, /* of a panel that are made float64 at a time, and so stay in a cache */
    SHORT_K = 32,  /* up to here, with one output per group (depthwise), the panel kernel beats BLAS */
};

typedef struct {
    const qk_layer *layer;
    qk_sums *sums;
    int64_t strips_g, strips_c; /* per group */
    double *scratch;            /* (threads, scratch_size) */
    int64_t scratch_size;
} panel_job;

static void to_double(double *to, const float *from, int64_t ld, int64_t lines, int64_t n) {
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < n; i++) to[line * COLUMNS + i] = from[line * ld + i];
}

/* c (m,n) = a b', or += that, of k columns; lines of a and b are COLUMNS apart. */
static void multiply(double *c, const double *a, const double *b, int64_t m, int64_t n, int64_t k, bool accumulate) {
    qk_dgemm(c, a, b,
             (qk_gemm_shape){.m = m,
                             .n = n,
                             .k = k,
                             .lda = COLUMNS,
                             .ldb = COLUMNS,
                             .ldc = n,
                             .b_transposed = true,
                             .accumulate = accumulate});
}

/* Lines of the lower triangle of G. */
static void add_gram_strip(const panel_job *job, int64_t group, int64_t strip, double *scratch) {
    qk_sums *s = job->sums;
    const int64_t K = s->inputs, first = strip * STRIP, ld = s->capacity;
    const int64_t n = first + STRIP < K ? first + STRIP : K, count = n - first;
    double *g = s->gram + group * K * K, *x = scratch, *product = x + n * COLUMNS;
    if (job->layer->as_bytes) {
        qk_kernels_get()->gram_bytes(g, s->bytes + group * K * ld, K, first, n, ld, (size_t)s->used);
        return;
    }
    for (int64_t at = 0; at < s->used; at += COLUMNS) {
        const int64_t columns = qk_smaller(COLUMNS, s->used - at);
        to_double(x, s->x + group * K * ld + at, ld, n, columns);
        multiply(product, x + first * COLUMNS, x, count, n, columns, at > 0);
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j <= first + i; j++) g[(first + i) * K + j] += product[i * n + j];
}

/* All outputs against some inputs. */
static void add_cross_strip(const panel_job *job, int64_t group, int64_t strip, double *scratch) {
    const qk_sums *s = job->sums;
    const int32_t zero_point = job->layer->affine.zero_point; /* of bytes */
    const int64_t K = s->inputs, O = job->layer->geometry.outputs, first = strip * STRIP, ld = s->capacity;
    const int64_t count = qk_smaller(STRIP, K - first), line = group * K + first;
    double *x = scratch, *y = x + STRIP * COLUMNS, *product = y + O * COLUMNS;
    for (int64_t at = 0; at < s->used; at += COLUMNS) {
        const int64_t n = qk_smaller(COLUMNS, s->used - at);
        to_double(y, s->y + group * O * ld + at, ld, O, n);
        if (!job->layer->as_bytes) to_double(x, s->x + line * ld + at, ld, count, n);
        for (int64_t k = 0; k < count && job->layer->as_bytes; k++)
            for (int64_t i = 0; i < n; i++) x[k * COLUMNS + i] = s->bytes[(line + k) * ld + at + i] - zero_point;
        multiply(product, y, x, O, count, n, at > 0);
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
        s->sum_x[k] += job->layer->as_bytes ? (double)kernels->sum_bytes(s->bytes + k * ld, n)
                                            : kernels->exact_sum(s->x + k * ld, n);
    if (!job->layer->with_target) return;
    for (int64_t o = group * O; o < (group + 1) * O; o++) {
        s->sum_y[o] += kernels->exact_sum(s->y + o * ld, n);
        s->power[o] += kernels->exact_product(s->y + o * ld, s->y + o * ld, n);
    }
}

/* Tasks of a group: G's strips, the longest first, C's strips, the vector sums. */
static void panel_task(void *context, int64_t task, int worker) {
    const panel_job *job = context;
    const int64_t per_group = job->strips_g + job->strips_c + 1, group = task / per_group, t = task % per_group;
    double *scratch = job->scratch + worker * job->scratch_size;
    if (t < job->strips_g)
        add_gram_strip(job, group, job->strips_g - 1 - t, scratch);
    else if (t == per_group - 1)
        add_vector_sums(job, group);
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
    if (layer->on_device.active) {
        qk_device_moments_add(layer, sums);
        sums->device_rows += sums->used;
    } else if (g->outputs == 1 && sums->inputs <= SHORT_K) {
        qk_pool_run(pool, short_panel_task, &job, g->groups);
    } else {
        job.strips_g = strips_of(sums->inputs);
        if (layer->with_target && sums->inputs > 0) job.strips_c = job.strips_g;
        const int64_t lines = layer->as_bytes ? 0 : sums->inputs; /* of G's product */
        job.scratch_size = (COLUMNS + STRIP) * qk_larger(lines, STRIP + g->outputs);
        job.scratch = QK_NEW(double, qk_pool_threads(pool), job.scratch_size);
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
