#include "loss/sample_grams.h"

#include <pthread.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/sizes.h"
#include "kernels/kernels.h"

enum {
    STRIP = 64,         /* lines of a Gram matrix in one product: what is above the diagonal is mostly left out */
    MOST_COLUMNS = 4096 /* of bytes that are multiplied at a time, or those of a piece */
};

static const qk_geometry *geometry_of(const qk_sample_grams *g) { return &g->on->data->geometry; }

int64_t qk_sample_gram_size(const qk_sample_grams *g) { return (g->inputs + g->outputs) * g->inputs; }

/* Inputs, errors and a target of a piece, and X R'. */
static int64_t panel_size(const qk_sample_grams *g) {
    return (g->inputs + g->outputs + 1) * g->on->pieces.size + g->inputs * g->outputs;
}

/* X (X - 128)' and X of one group. */
static int64_t exact_size(const qk_sample_grams *g) { return geometry_of(g)->inputs * (geometry_of(g)->inputs + 1); }

static bool are_alike(const qk_training_data *d, qk_affine *affine) {
    bool alike = qk_bytes_of(d->x, affine);
    for (int64_t s = 1; s < d->count && alike; s++)
        alike = d->x[s].affine.scale == d->x[0].affine.scale && d->x[s].affine.zero_point == d->x[0].affine.zero_point;
    return alike;
}

static qk_status allocate(qk_sample_grams *g, int64_t samples) {
    const qk_geometry *geometry = geometry_of(g);
    const int64_t K = geometry->inputs, rows = g->on->rows, threads = qk_pool_threads(g->on->pool);
    g->place = QK_NEW(int64_t, g->on->data->count);
    g->weight = QK_NEW(float, rows, K);
    g->bias = QK_NEW(float, rows);
    g->products = QK_NEW(float, samples, geometry->groups, qk_sample_gram_size(g));
    g->squares = QK_NEW(double, samples, rows);
    g->target = QK_NEW(double, samples, 2, rows);
    g->scratch = QK_NEW(float, threads, g->scratch_size);
    g->bytes = QK_NEW(uint8_t, g->as_bytes, threads, K, g->columns);
    g->exact = QK_NEW(double, g->as_bytes, threads, exact_size(g));
    g->sums = QK_NEW(double, g->as_bytes, geometry->groups, exact_size(g));
    const bool ok = g->place && g->weight && g->bias && g->products && g->squares && g->target && g->scratch &&
                    g->bytes && g->exact && g->sums;
    return ok ? QK_OK : QK_E_NOMEM;
}

qk_status qk_sample_grams_init(qk_sample_grams *g, const qk_reconstruction *on, const float *weight, const float *bias,
                               bool with_bias, int64_t samples) {
    const int64_t K = on->data->geometry.inputs;
    *g = (qk_sample_grams){.on = on, .with_bias = with_bias, .inputs = with_bias ? K + 1 : K};
    g->outputs = on->data->geometry.outputs;
    g->scratch_size = panel_size(g);
    g->as_bytes = are_alike(on->data, &g->affine);
    pthread_mutex_init(&g->lock, NULL);
    g->columns = qk_smaller(on->data->extent.positions, qk_larger(MOST_COLUMNS, on->pieces.size));
    QK_TRY(allocate(g, samples));
    memcpy(g->weight, weight, (size_t)(on->rows * K) * sizeof *weight);
    memcpy(g->bias, bias, (size_t)on->rows * sizeof *bias);
    return QK_OK;
}

void qk_sample_grams_destroy(qk_sample_grams *g) {
    void *arrays[] = {g->place,  g->weight,  g->bias,  g->products, g->squares,
                      g->target, g->scratch, g->bytes, g->exact,    g->sums};
    if (g->on) pthread_mutex_destroy(&g->lock);
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* ---- adding a sample --------------------------------------------------------------------------- */

/* X X' += that of a panel of n columns: the strips up to the diagonal. */
static void add_gram(const qk_sample_grams *g, float *products, const float *panel, int64_t n, bool accumulate) {
    const int64_t L = g->inputs;
    for (int64_t first = 0; first < L; first += STRIP) {
        const int64_t end = qk_smaller(first + STRIP, L);
        qk_sgemm(products + first * L, panel + first * n, panel,
                 (qk_gemm_shape){.m = end - first,
                                 .n = end,
                                 .k = n,
                                 .lda = n,
                                 .ldb = n,
                                 .ldc = L,
                                 .b_transposed = true,
                                 .accumulate = accumulate});
    }
}

static void mirror(float *gram, int64_t L) {
    for (int64_t i = 0; i < L; i++)
        for (int64_t j = 0; j < i; j++) gram[j * L + i] = gram[i * L + j];
}

/* Bytes of a group of a sample: the columns that wait, and the sums over those before them. */
typedef struct {
    uint8_t *panel; /* (K, columns) */
    int64_t used;
    double *gram, *sum; /* of q: (K, K) lower triangle of q (q - 128)', (K) */
} group_bytes;

static void multiply_waiting(const qk_sample_grams *g, group_bytes *b) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = geometry_of(g)->inputs;
    kernels->gram_bytes(b->gram, b->panel, K, 0, K, g->columns, (size_t)b->used);
    for (int64_t k = 0; k < K; k++) b->sum[k] += (double)kernels->sum_bytes(b->panel + k * g->columns, (size_t)b->used);
    b->used = 0;
}

/* Returns the sum of (a - z)(b - z) over n columns, from those of a (b - 128). */
static double product_of(const qk_sample_grams *g, const group_bytes *b, int64_t i, int64_t j, double n) {
    const double z = g->affine.zero_point, gram = b->gram[i * geometry_of(g)->inputs + j];
    return gram + (128 - z) * b->sum[i] - z * b->sum[j] + n * z * z;
}

static void write_gram(const qk_sample_grams *g, float *products, const group_bytes *b) {
    const int64_t K = geometry_of(g)->inputs, L = g->inputs;
    const double scale = g->affine.scale, n = (double)g->on->data->extent.positions;
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j <= i; j++) products[i * L + j] = (float)(scale * scale * product_of(g, b, i, j, n));
    for (int64_t k = 0; k < K && g->with_bias; k++)
        products[K * L + k] = (float)(scale * (b->sum[k] - n * g->affine.zero_point));
    if (g->with_bias) products[K * L + K] = (float)n;
}

/* Sums of integers: the same whatever their order. */
static void add_exactly(qk_sample_grams *g, int64_t group, const group_bytes *b) {
    const int64_t K = geometry_of(g)->inputs;
    double *sums = g->sums + group * exact_size(g);
    pthread_mutex_lock(&g->lock);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j <= i; j++) sums[i * K + j] += b->gram[i * K + j];
    for (int64_t k = 0; k < K; k++) sums[K * K + k] += b->sum[k];
    pthread_mutex_unlock(&g->lock);
}

/* One group of a sample on its way. */
typedef struct {
    int64_t sample, place, group;
    float *panel, *error, *line; /* (inputs, columns), (O, columns), (columns) of a piece */
    float *cross;                /* (inputs, O): X R' */
} addition;

/* What a piece, whose inputs are in the panel, adds to X R' and the sums of the outputs. */
static void add_errors(qk_sample_grams *g, const addition *a, int64_t piece) {
    const int64_t L = g->inputs, O = g->outputs, n = g->on->pieces.tables[piece].count, row = a->group * O;
    double *target = g->target + 2 * a->place * g->on->rows + row;
    qk_reconstruct_piece(g->on, g->weight, g->bias, a->sample,
                         &(qk_piece_errors){.group = a->group,
                                            .piece = piece,
                                            .panel = a->panel,
                                            .error = a->error,
                                            .target = a->line,
                                            .squares = g->squares + a->place * g->on->rows + row,
                                            .target_sum = target,
                                            .target_squares = target + g->on->rows});
    qk_sgemm(a->cross, a->panel, a->error,
             (qk_gemm_shape){
                 .m = L, .n = O, .k = n, .lda = n, .ldb = n, .ldc = O, .b_transposed = true, .accumulate = piece > 0});
}

/* What a piece of floats adds. */
static void add_piece(qk_sample_grams *g, addition *a, int64_t piece, float *products) {
    const qk_training_data *d = g->on->data;
    const int64_t n = g->on->pieces.tables[piece].count;
    a->error = a->panel + g->inputs * n;
    a->line = a->error + g->outputs * n;
    float *last_line = a->panel + (g->inputs - 1) * n; /* With the bias it is the input that is always 1. */
    for (int64_t p = 0; p < n && g->with_bias; p++) last_line[p] = 1;
    qk_fill_piece(d, d->x[a->sample], &(qk_piece_fill){&g->on->pieces.tables[piece], a->group, a->panel, n, 0, NULL});
    add_errors(g, a, piece);
    if (!g->as_bytes) add_gram(g, products, a->panel, n, piece > 0);
}

/* All pieces once more, as bytes. */
static void add_group_bytes(qk_sample_grams *g, const addition *a, int worker, float *products) {
    const qk_training_data *d = g->on->data;
    const int64_t K = d->geometry.inputs;
    group_bytes b = {.panel = g->bytes + worker * K * g->columns, .gram = g->exact + worker * exact_size(g)};
    b.sum = b.gram + K * K;
    memset(b.gram, 0, (size_t)exact_size(g) * sizeof *b.gram);
    for (int64_t piece = 0; piece < g->on->pieces.count; piece++) {
        const qk_row_table *table = &g->on->pieces.tables[piece];
        if (b.used + table->count > g->columns) multiply_waiting(g, &b);
        qk_fill_piece(d, d->x[a->sample], &(qk_piece_fill){table, a->group, NULL, g->columns, b.used, b.panel});
        b.used += table->count;
    }
    multiply_waiting(g, &b);
    write_gram(g, products, &b);
    add_exactly(g, a->group, &b);
}

typedef struct {
    qk_sample_grams *g;
    const int64_t *samples;
} batch;

static void add_task(void *context, int64_t task, int worker) {
    const batch *added = context;
    qk_sample_grams *g = added->g;
    const int64_t O = g->outputs, L = g->inputs, groups = geometry_of(g)->groups;
    addition a = {.sample = added->samples[task / groups], .place = g->count + task / groups, .group = task % groups};
    float *products = g->products + (a.place * groups + a.group) * qk_sample_gram_size(g);
    a.cross = g->scratch + worker * g->scratch_size;
    a.panel = a.cross + L * O;
    for (int64_t piece = 0; piece < g->on->pieces.count; piece++) add_piece(g, &a, piece, products);
    if (g->as_bytes) add_group_bytes(g, &a, worker, products);
    mirror(products, L);
    for (int64_t o = 0; o < O; o++)
        for (int64_t k = 0; k < L; k++) products[(L + o) * L + k] = a.cross[k * O + o];
}

void qk_sample_grams_add(qk_sample_grams *g, const int64_t *samples, int64_t count) {
    qk_pool_run(g->on->pool, add_task, &(batch){g, samples}, count * geometry_of(g)->groups);
    for (int64_t i = 0; i < count; i++) g->place[samples[i]] = g->count++;
}

/* ---- moments ----------------------------------------------------------------------------------- */

/* G and the mean of X of a group. */
static void set_inputs(const qk_sample_grams *g, qk_quadratic *q, int64_t group) {
    const int64_t K = q->inputs;
    const double n = (double)(g->count * g->on->data->extent.positions), scale = g->affine.scale;
    double *sums = g->sums + group * exact_size(g);
    const group_bytes b = {.gram = sums, .sum = sums + K * K};
    double *gram = q->gram + group * K * K, *mean = q->mean_x + group * K;
    for (int64_t i = 0; i < K; i++) {
        mean[i] = scale * (b.sum[i] / n - g->affine.zero_point);
        for (int64_t j = 0; j <= i; j++)
            gram[i * K + j] = gram[j * K + i] = scale * scale * product_of(g, &b, i, j, n) / n;
    }
}

/* C = W G + b mu' - R X', which loses less than Y X' would. w (O, K): scratch. */
static void set_outputs(const qk_sample_grams *g, qk_quadratic *q, int64_t group, double *w) {
    const int64_t K = q->inputs, O = q->outputs, L = g->inputs, size = qk_sample_gram_size(g), rows = g->on->rows;
    const double n = (double)(g->count * g->on->data->extent.positions);
    double *cross = q->cross + group * O * K;
    for (int64_t i = 0; i < O * K; i++) w[i] = g->weight[group * O * K + i];
    qk_dgemm(cross, w, q->gram + group * K * K, (qk_gemm_shape){.m = O, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
    for (int64_t o = 0; o < O; o++)
        qk_kernels_get()->axpy(cross + o * K, g->bias[group * O + o], q->mean_x + group * K, (size_t)K);
    for (int64_t s = 0; s < g->count; s++) {
        const float *products = g->products + (s * q->groups + group) * size + L * L;
        const double *target = g->target + 2 * s * rows;
        for (int64_t o = 0; o < O; o++) {
            const int64_t row = group * O + o;
            for (int64_t k = 0; k < K; k++) cross[o * K + k] -= products[o * L + k] / n;
            q->mean_y[row] += target[row] / n;
            q->power[row] += target[rows + row] / n;
        }
    }
}

qk_status qk_sample_grams_moments(const qk_sample_grams *g, qk_quadratic *q) {
    const int64_t K = geometry_of(g)->inputs, O = g->outputs;
    QK_TRY(qk_quadratic_new(q, geometry_of(g)->groups, K, O));
    double *w = QK_NEW(double, O, K);
    if (!w) return QK_E_NOMEM;
    for (int64_t group = 0; group < q->groups; group++) {
        set_inputs(g, q, group);
        set_outputs(g, q, group, w);
    }
    free(w);
    if (qk_quadratic_check(q, true) != QK_OK) return QK_E_TOO_LARGE; /* the samples are finite */
    qk_quadratic_centre(q);
    return QK_OK;
}
