#include "calibration/weight_error.h"

#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "moments/kept_rows.h"
#include "moments/quadratic.h"

/* A little of the weight's own error, for inputs that calibration data hardly excites. */
static const double DAMPING = 1e-4;

static void damp(qk_quadratic *q) {
    const int64_t K = q->inputs;
    for (int64_t g = 0; g < q->groups; g++) {
        double *gram = q->gram + g * K * K, trace = 0;
        for (int64_t k = 0; k < K; k++) trace += gram[k * K + k];
        for (int64_t k = 0; k < K; k++) gram[k * K + k] += DAMPING * trace / (double)K;
    }
}

static qk_status from_moments(qk_weight_error *e, const qk_layer *layer, bool bias_free) {
    qk_quadratic q;
    QK_TRY(qk_quadratic_init(&q, layer, QK_FITTED, false));
    const int64_t squares = q.groups * q.inputs * q.inputs;
    e->gram = QK_NEW(float, squares);
    if (e->gram) {
        if (bias_free) qk_quadratic_centre(&q);
        damp(&q);
        for (int64_t i = 0; i < squares; i++) e->gram[i] = (float)q.gram[i];
    }
    qk_quadratic_destroy(&q);
    return e->gram ? QK_OK : QK_E_NOMEM;
}

/* One line of kept rows, centred or not; adds its mean square to *power. The limits are those of moments. */
static qk_status take_line(const qk_layer *layer, int64_t line, bool centred, float *to, double *power) {
    const qk_kernels *kernels = qk_kernels_get();
    const qk_sums *s = layer->sets[QK_FITTED];
    const size_t n = (size_t)s->used;
    qk_kept_line(layer, s, line, to);
    const double mean = kernels->exact_sum(to, n) / (double)n, square = kernels->exact_product(to, to, n) / (double)n;
    if (!isfinite(mean)) return QK_E_NONFINITE;
    if (!(square <= QK_LARGEST_MOMENT)) return QK_E_TOO_LARGE;
    for (size_t i = 0; i < n && centred; i++) to[i] = (float)(to[i] - mean);
    *power += kernels->exact_product(to, to, n) / (double)n;
    return QK_OK;
}

static qk_status from_rows(qk_weight_error *e, const qk_layer *layer, bool bias_free) {
    e->row_count = qk_layer_rows(layer, QK_FITTED);
    if (e->row_count == 0) return QK_E_NO_ROWS;
    e->rows = QK_NEW(float, e->groups, e->inputs, e->row_count);
    e->damping = QK_NEW(double, e->groups);
    if (!e->rows || !e->damping) return QK_E_NOMEM;
    for (int64_t g = 0; g < e->groups; g++) {
        double power = 0;
        for (int64_t line = g * e->inputs; line < (g + 1) * e->inputs; line++)
            QK_TRY(take_line(layer, line, bias_free, e->rows + line * e->row_count, &power));
        e->damping[g] = DAMPING * power / (double)e->inputs;
    }
    return QK_OK;
}

qk_status qk_weight_error_init(qk_weight_error *e, const qk_layer *layer, bool bias_free) {
    const qk_geometry *g = qk_layer_geometry(layer);
    *e = (qk_weight_error){.groups = g->groups, .inputs = g->inputs};
    const qk_status status = (layer->keeps_rows ? from_rows : from_moments)(e, layer, bias_free);
    if (status != QK_OK) qk_weight_error_destroy(e);
    return status;
}

void qk_weight_error_destroy(qk_weight_error *e) {
    free(e->gram);
    free(e->rows);
    free(e->damping);
    *e = (qk_weight_error){0};
}

int64_t qk_weight_error_width(const qk_weight_error *e) { return e->gram ? e->inputs : e->row_count; }

void qk_weight_errors(const qk_weight_error *e, int64_t group, const float *d, int64_t count, float *scratch,
                      double *to, int64_t stride) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = e->inputs, N = qk_weight_error_width(e);
    const float *by = e->gram ? e->gram + group * K * K : e->rows ? e->rows + group * K * N : NULL;
    if (by) qk_sgemm(scratch, d, by, (qk_gemm_shape){.m = count, .n = N, .k = K, .lda = K, .ldb = N, .ldc = N});
    for (int64_t i = 0; i < count; i++) {
        const float *di = d + i * K, *made = scratch + i * N;
        if (e->rows)
            to[i * stride] = kernels->sum_squares(made, (size_t)N) / (double)N +
                             e->damping[group] * kernels->dot_f32(di, di, (size_t)K);
        else
            to[i * stride] = kernels->dot_f32(di, by ? made : di, (size_t)K);
    }
}
