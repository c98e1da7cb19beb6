#include "moments/quadratic.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "kernels/kernels.h"

qk_status qk_quadratic_new(qk_quadratic *q, int64_t groups, int64_t inputs, int64_t outputs) {
    *q = (qk_quadratic){.groups = groups, .inputs = inputs, .outputs = outputs};
    q->gram = QK_NEW(double, groups, inputs, inputs);
    q->mean_x = QK_NEW(double, groups, inputs);
    q->cross = QK_NEW(double, groups, outputs, inputs);
    q->mean_y = QK_NEW(double, groups, outputs);
    q->power = QK_NEW(double, groups, outputs);
    if (q->gram && q->mean_x && q->cross && q->mean_y && q->power) return QK_OK;
    qk_quadratic_destroy(q);
    return QK_E_NOMEM;
}

/* Infinite where a number is NaN. */
static double largest(const double *x, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = isnan(x[i]) ? INFINITY : fmax(most, fabs(x[i]));
    return most;
}

/* A NaN or Inf in the data reaches the mean of its input or of its output. */
qk_status qk_quadratic_check(const qk_quadratic *q, bool with_target) {
    const double most = QK_LARGEST_MOMENT;
    const int64_t inputs = q->groups * q->inputs, rows = with_target ? q->groups * q->outputs : 0;
    if (!isfinite(largest(q->mean_x, inputs)) || !isfinite(largest(q->mean_y, rows))) return QK_E_NONFINITE;
    const bool small = largest(q->gram, inputs * q->inputs) <= most && largest(q->power, rows) <= most;
    return small ? QK_OK : QK_E_TOO_LARGE;
}

qk_status qk_quadratic_init(qk_quadratic *q, const qk_layer *layer, qk_set set, bool with_target) {
    const qk_geometry *g = qk_layer_geometry(layer);
    *q = (qk_quadratic){0};
    if (qk_layer_rows(layer, set) == 0) return QK_E_NO_ROWS;
    QK_TRY(qk_quadratic_new(q, g->groups, g->inputs, g->outputs));
    qk_status status = qk_layer_moments(layer, set, q->gram, q->cross, q->mean_x, q->mean_y, q->power);
    if (status == QK_OK) status = qk_quadratic_check(q, with_target);
    if (status != QK_OK) qk_quadratic_destroy(q);
    return status;
}

qk_status qk_quadratic_copy(qk_quadratic *q, const qk_quadratic *from) {
    const int64_t inputs = from->groups * from->inputs, rows = from->groups * from->outputs;
    QK_TRY(qk_quadratic_new(q, from->groups, from->inputs, from->outputs));
    memcpy(q->gram, from->gram, (size_t)(inputs * from->inputs) * sizeof *q->gram);
    memcpy(q->mean_x, from->mean_x, (size_t)inputs * sizeof *q->mean_x);
    memcpy(q->cross, from->cross, (size_t)(rows * from->inputs) * sizeof *q->cross);
    memcpy(q->mean_y, from->mean_y, (size_t)rows * sizeof *q->mean_y);
    memcpy(q->power, from->power, (size_t)rows * sizeof *q->power);
    return QK_OK;
}

void qk_quadratic_destroy(qk_quadratic *q) {
    free(q->gram);
    free(q->cross);
    free(q->mean_x);
    free(q->mean_y);
    free(q->power);
    *q = (qk_quadratic){0};
}

qk_status qk_quadratic_aim(qk_quadratic *q, const float *weight) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = q->inputs, O = q->outputs;
    double *w = QK_NEW(double, O, K);
    if (!w) return QK_E_NOMEM;
    for (int64_t g = 0; g < q->groups; g++) {
        for (int64_t i = 0; i < O * K; i++) w[i] = weight[g * O * K + i];
        qk_dgemm(q->cross + g * O * K, w, q->gram + g * K * K,
                 (qk_gemm_shape){.m = O, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
        for (int64_t o = 0; o < O; o++) {
            q->mean_y[g * O + o] = kernels->dot(w + o * K, q->mean_x + g * K, (size_t)K);
            q->power[g * O + o] = kernels->dot(w + o * K, q->cross + (g * O + o) * K, (size_t)K);
        }
    }
    free(w);
    return QK_OK;
}

void qk_quadratic_centre(qk_quadratic *q) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = q->inputs, O = q->outputs;
    for (int64_t g = 0; g < q->groups; g++) {
        const double *mu = q->mean_x + g * K;
        for (int64_t k = 0; k < K; k++) kernels->axpy(q->gram + (g * K + k) * K, -mu[k], mu, (size_t)K);
        for (int64_t o = g * O; o < (g + 1) * O; o++) {
            kernels->axpy(q->cross + o * K, -q->mean_y[o], mu, (size_t)K);
            q->power[o] -= q->mean_y[o] * q->mean_y[o];
        }
    }
}

void qk_quadratic_fix_bias(qk_quadratic *q, const float *bias) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = q->inputs, O = q->outputs;
    for (int64_t g = 0; g < q->groups; g++) {
        const double *mu = q->mean_x + g * K;
        for (int64_t k = 0; k < K; k++) kernels->axpy(q->gram + (g * K + k) * K, mu[k], mu, (size_t)K);
        for (int64_t o = g * O; o < (g + 1) * O; o++)
            kernels->axpy(q->cross + o * K, q->mean_y[o] - (bias ? (double)bias[o] : 0), mu, (size_t)K);
    }
}

static int64_t blocks_per_group(const qk_quadratic *q, int64_t size) { return qk_ceil_div(q->outputs, size); }

int64_t qk_row_blocks(const qk_quadratic *q, int64_t size) { return q->groups * blocks_per_group(q, size); }

qk_row_block qk_row_block_at(const qk_quadratic *q, int64_t size, int64_t index) {
    const int64_t blocks = blocks_per_group(q, size), group = index / blocks, skipped = index % blocks * size;
    const int64_t rest = q->outputs - skipped;
    return (qk_row_block){group, group * q->outputs + skipped, rest < size ? rest : size};
}

void qk_output_error(const qk_quadratic *q, qk_row_block block, const double *w, const double *bias, double *scratch,
                     double *error) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = q->inputs;
    qk_dgemm(scratch, w, q->gram + block.group * K * K,
             (qk_gemm_shape){.m = block.count, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t row = block.first + i;
        const double *wi = w + i * K, *c = q->cross + row * K;
        const double mean = bias[row] + kernels->dot(wi, q->mean_x + block.group * K, (size_t)K) - q->mean_y[row];
        error[row] = kernels->dot(wi, scratch + i * K, (size_t)K) - 2 * kernels->dot(wi, c, (size_t)K) + q->power[row] +
                     mean * mean;
    }
}
