#include "finetune/reconstruction.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"

enum { FEW_OUTPUTS = 2 }; /* up to here per group (depthwise) vector loops beat BLAS */

/* Samples of one unit of work: several small ones, or a piece of a large one. */
static int64_t samples_per_unit(const qk_training_data *d) {
    const int64_t n = QK_CHUNK / d->extent.positions;
    return n < 1 ? 1 : n;
}

static int64_t unit_count(const qk_training_data *d, int64_t samples) {
    const int64_t each = samples_per_unit(d);
    return (samples + each - 1) / each * d->pieces;
}

qk_status qk_reconstruction_init(qk_reconstruction *r, const qk_training_data *data, int64_t most_samples,
                                 qk_pool *pool) {
    const qk_geometry *g = &data->geometry;
    const int64_t rows = g->groups * g->outputs, units = unit_count(data, most_samples);
    *r = (qk_reconstruction){.data = data, .pool = pool, .most_samples = most_samples, .rows = rows};
    r->panels = QK_NEW(float, qk_pool_threads(pool) * (g->inputs + 2 * g->outputs) * QK_CHUNK);
    r->gradient = QK_NEW(float, units * rows * g->inputs);
    r->slope = QK_NEW(float, units * rows);
    r->loss = QK_NEW(double, units * rows);
    r->power = QK_NEW(double, units * g->groups * g->inputs);
    r->target_power = QK_NEW(double, units * g->groups);
    return r->panels && r->gradient && r->slope && r->loss && r->power && r->target_power ? QK_OK : QK_E_NOMEM;
}

void qk_reconstruction_destroy(qk_reconstruction *r) {
    free(r->panels);
    free(r->gradient);
    free(r->slope);
    free(r->loss);
    free(r->power);
    free(r->target_power);
}

typedef struct {
    qk_reconstruction *r;
    const float *weight, *bias;
    const int64_t *samples;
    int64_t count, units;
    const qk_reconstruction_result *wanted;
} batch;

/* out (O, n) = weight (O, K) panel (K, n). */
static void forward(float *out, const float *weight, const float *panel, int64_t O, int64_t K, int64_t n) {
    if (O > FEW_OUTPUTS) {
        qk_sgemm(out, weight, panel, (qk_gemm_shape){.m = O, .n = n, .k = K, .lda = K, .ldb = n, .ldc = n});
        return;
    }
    for (int64_t o = 0; o < O; o++) qk_kernels_get()->weighted_sum(out + o * n, weight + o * K, panel, K, n, (size_t)n);
}

/* gradient (O, K) = error (O, n) panel' (n, K). */
static void backward(float *gradient, const float *error, const float *panel, int64_t O, int64_t K, int64_t n) {
    if (O > FEW_OUTPUTS) {
        qk_sgemm(gradient, error, panel,
                 (qk_gemm_shape){.m = O, .n = K, .k = n, .lda = n, .ldb = n, .ldc = K, .b_transposed = true});
        return;
    }
    for (int64_t o = 0; o < O; o++)
        for (int64_t k = 0; k < K; k++)
            gradient[o * K + k] = (float)qk_kernels_get()->dot_f32(error + o * n, panel + k * n, (size_t)n);
}

/* The target of one output line, from column `column` of to on. */
static void copy_target(float *to, const qk_training_data *d, int64_t sample, int64_t piece, int64_t row) {
    const qk_extent *e = &d->extent;
    const int64_t first = piece * QK_CHUNK, n = d->tables[piece].count;
    const float *y = (const float *)d->y[sample].data + row * e->y_output + first * e->y_position;
    if (e->y_position == 1) {
        memcpy(to, y, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; i++) to[i] = y[i * e->y_position];
}

/* One group on the columns of one unit. */
static void run_group(const batch *b, int64_t unit, int64_t group, int64_t first, int64_t last, int64_t piece,
                      float *panel) {
    const qk_kernels *kernels = qk_kernels_get();
    const qk_training_data *d = b->r->data;
    const int64_t K = d->geometry.inputs, O = d->geometry.outputs, each = d->tables[piece].count;
    const int64_t n = (last - first) * each;
    float *out = panel + K * n, *target = out + O * n;
    for (int64_t s = first; s < last; s++) {
        qk_fill_piece(d, b->samples[s], piece, group, panel, n, (s - first) * each);
        for (int64_t o = 0; o < O; o++)
            copy_target(target + o * n + (s - first) * each, d, b->samples[s], piece, group * O + o);
    }
    forward(out, b->weight + group * O * K, panel, O, K, n);
    double target_power = 0;
    for (int64_t o = 0; o < O; o++) {
        const int64_t row = group * O + o;
        if (b->wanted->target_power) target_power += kernels->sum_squares(target + o * n, (size_t)n);
        b->r->loss[unit * b->r->rows + row] =
            kernels->output_error(out + o * n, target + o * n, b->bias ? b->bias[row] : 0, (size_t)n);
        if (b->wanted->slope) b->r->slope[unit * b->r->rows + row] = (float)kernels->sum(out + o * n, (size_t)n);
    }
    b->r->target_power[unit * d->geometry.groups + group] = target_power;
    if (b->wanted->gradient) backward(b->r->gradient + (unit * b->r->rows + group * O) * K, out, panel, O, K, n);
    for (int64_t k = 0; k < K && b->wanted->mean_power; k++)
        b->r->power[(unit * d->geometry.groups + group) * K + k] = kernels->sum_squares(panel + k * n, (size_t)n);
}

static void unit_task(void *context, int64_t task, int worker) {
    const batch *b = context;
    const qk_training_data *d = b->r->data;
    const qk_geometry *g = &d->geometry;
    const int64_t unit = task / g->groups, group = task % g->groups, each = samples_per_unit(d);
    const int64_t first = unit / d->pieces * each, last = first + each < b->count ? first + each : b->count;
    run_group(b, unit, group, first, last, unit % d->pieces,
              b->r->panels + worker * (g->inputs + 2 * g->outputs) * QK_CHUNK);
}

/* to[i] = factor * sum over units of parts[unit, i] */
static void add_units(float *to, const float *parts, int64_t units, int64_t n, double factor) {
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t u = 0; u < units; u++) sum += parts[u * n + i];
        to[i] = (float)(factor * sum);
    }
}

void qk_reconstruct(qk_reconstruction *r, const float *weight, const float *bias, const int64_t *samples, int64_t count,
                    qk_reconstruction_result *result) {
    const qk_geometry *g = &r->data->geometry;
    const int64_t units = unit_count(r->data, count), inputs = g->groups * g->inputs;
    const double columns = (double)(count * r->data->extent.positions);
    batch b = {r, weight, bias, samples, count, units, result};
    qk_pool_run(r->pool, unit_task, &b, units * g->groups);
    result->loss = 0;
    for (int64_t row = 0; row < r->rows; row++) {
        double loss = 0;
        for (int64_t u = 0; u < units; u++) loss += r->loss[u * r->rows + row] / columns;
        if (result->row_loss) result->row_loss[row] = loss;
        result->loss += loss;
    }
    for (int64_t i = 0; i < units * g->groups && result->target_power; i++)
        *result->target_power = (i ? *result->target_power : 0) + r->target_power[i] / columns;
    if (result->gradient) add_units(result->gradient, r->gradient, units, r->rows * g->inputs, 2 / columns);
    if (result->slope) add_units(result->slope, r->slope, units, r->rows, 2 / columns);
    for (int64_t i = 0; i < inputs && result->mean_power; i++) {
        result->mean_power[i] = 0;
        for (int64_t u = 0; u < units; u++) result->mean_power[i] += r->power[u * inputs + i] / columns;
    }
}
