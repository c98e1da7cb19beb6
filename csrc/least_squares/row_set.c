#include "least_squares/row_set.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "kernels/kernels.h"
#include "moments/kept_rows.h"
#include "moments/quadratic.h"

enum { OUTPUTS = 64 /* of a product */ };

typedef struct {
    qk_row_set *to;
    const qk_row_source *of;
} job;

/* Centres a line of rows, and scales it; what it was on average, and its mean square after that. */
static double centre(float *line, int64_t rows, double *mean) {
    const qk_kernels *kernels = qk_kernels_get();
    const double root = sqrt((double)rows);
    *mean = kernels->exact_sum(line, (size_t)rows) / (double)rows;
    for (int64_t i = 0; i < rows; i++) line[i] = (float)((line[i] - *mean) / root);
    return kernels->exact_product(line, line, (size_t)rows);
}

static void input_task(void *context, int64_t k, int worker) {
    (void)worker;
    const job *j = context;
    const qk_row_set *s = j->to;
    float *line = s->x + k * s->width;
    qk_kept_line(j->of->layer, j->of->layer->sets[j->of->set], k, line);
    centre(line, s->rows, &s->mean_x[k]);
    if (s->width > s->rows) line[s->rows] = (float)s->mean_x[k];
}

static void target_task(void *context, int64_t o, int worker) {
    (void)worker;
    const job *j = context;
    const qk_row_set *s = j->to;
    const qk_sums *from = j->of->layer->sets[j->of->set];
    float *line = s->y + o * s->width;
    memcpy(line, from->y + o * from->capacity, (size_t)s->rows * sizeof *line);
    s->power[o] = centre(line, s->rows, &s->mean_y[o]);
}

/* Where there is no target: that of the float weight. */
static void made_target_task(void *context, int64_t task, int worker) {
    (void)worker;
    const job *j = context;
    const qk_row_set *s = j->to;
    const int64_t K = s->inputs, per_group = qk_ceil_div(s->outputs, OUTPUTS), group = task / per_group;
    const int64_t skipped = task % per_group * OUTPUTS, first = group * s->outputs + skipped;
    const int64_t count = qk_smaller(OUTPUTS, s->outputs - skipped);
    qk_sgemm(s->y + first * s->width, j->of->weight + first * K, s->x + group * K * s->width,
             (qk_gemm_shape){.m = count, .n = s->rows, .k = K, .lda = K, .ldb = s->width, .ldc = s->width});
    for (int64_t o = first; o < first + count; o++) {
        const float *line = s->y + o * s->width;
        s->power[o] = qk_kernels_get()->exact_product(line, line, (size_t)s->rows);
        for (int64_t k = 0; k < K; k++) s->mean_y[o] += (double)j->of->weight[o * K + k] * s->mean_x[group * K + k];
    }
}

static qk_status check(const double *means, const double *powers, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(means[i])) return QK_E_NONFINITE;
        if (powers && !(powers[i] <= QK_LARGEST_MOMENT)) return QK_E_TOO_LARGE;
        if (!(means[i] * means[i] <= QK_LARGEST_MOMENT)) return QK_E_TOO_LARGE;
    }
    return QK_OK;
}

static qk_status fill(qk_row_set *s, const qk_row_source *of, qk_run *run) {
    const int64_t inputs = s->groups * s->inputs, outputs = s->groups * s->outputs;
    job j = {s, of};
    QK_TRY(qk_run_tasks(run, input_task, &j, inputs));
    QK_TRY(check(s->mean_x, NULL, inputs));
    for (int64_t k = 0; k < inputs; k++) {
        const float *line = s->x + k * s->width;
        if (!(qk_kernels_get()->exact_product(line, line, (size_t)s->rows) <= QK_LARGEST_MOMENT)) return QK_E_TOO_LARGE;
    }
    if (of->layer->with_target)
        QK_TRY(qk_run_tasks(run, target_task, &j, outputs));
    else
        QK_TRY(qk_run_tasks(run, made_target_task, &j, s->groups * qk_ceil_div(s->outputs, OUTPUTS)));
    QK_TRY(check(s->mean_y, s->power, outputs));
    for (int64_t o = 0; o < outputs && s->width > s->rows; o++)
        s->y[o * s->width + s->rows] = (float)(s->mean_y[o] - (of->bias ? (double)of->bias[o] : 0));
    return QK_OK;
}

qk_status qk_row_set_new(qk_row_set *s, const qk_row_source *of, qk_run *run) {
    const qk_geometry *g = qk_layer_geometry(of->layer);
    const int64_t inputs = g->groups * g->inputs, outputs = g->groups * g->outputs;
    *s = (qk_row_set){.groups = g->groups, .inputs = g->inputs, .outputs = g->outputs};
    s->rows = qk_layer_rows(of->layer, of->set);
    if (s->rows == 0) return QK_E_NO_ROWS;
    s->width = s->rows + of->fixes_bias;
    s->x = QK_NEW(float, inputs, s->width);
    s->y = QK_NEW(float, outputs, s->width);
    s->mean_x = QK_NEW(double, inputs);
    s->mean_y = QK_NEW(double, outputs);
    s->power = QK_NEW(double, outputs);
    if (!s->x || !s->y || !s->mean_x || !s->mean_y || !s->power) return QK_E_NOMEM;
    return fill(s, of, run);
}

void qk_row_set_destroy(qk_row_set *s) {
    free(s->x);
    free(s->y);
    free(s->mean_x);
    free(s->mean_y);
    free(s->power);
    *s = (qk_row_set){0};
}
