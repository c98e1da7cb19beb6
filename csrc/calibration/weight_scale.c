/* CalibMethod.MinOutputMSE: the weight scale with the least error of the layer's output.
 *
 * MinMax lets one outlier set the scale, often in a channel whose input hardly varies, where clipping it costs nothing.
 * With D = W^ - W the mean squared error of output o is d_o G d_o', G the Gram matrix of the float inputs (centred when
 * a bias takes up the mean), so every scale can be judged without running the model. A scale that several outputs share
 * is judged by the sum of their errors, each divided by its own power w_o G w_o' plus the mean power: the layers behind
 * can make a faint channel loud, so it counts more than its power says, yet no loud channel may be given up for it. */
#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "finetune/quadratic.h"
#include "kernels/kernels.h"

enum {
    COARSE = 25, /* factors 2^(-i/4): 1 ... 1/64 */
    FINE = 6,    /* three on each side of the best, 2^(-1/16) apart */
    MAX_FACTORS = COARSE,
};

typedef struct {
    const qk_quadratic *q;
    const qk_scale_problem *problem;
    const double *lo, *hi; /* (rows) range of each output channel's scale before the factor */
    int64_t blocks;        /* per group */
    int factor_count;
    const double *factors; /* (rows, factor_count) */
    double *error;         /* (rows, factor_count) */
    double *power;         /* (rows) */
    double *scratch;       /* (threads, 2, QK_ROW_BLOCK, K) */
} search;

static qk_affine affine_of(const search *s, int64_t row, double factor) {
    return qk_affine_from_range(s->lo[row] * factor, s->hi[row] * factor, s->problem->grid);
}

/* The output error of a block of rows under every factor. */
static void search_task(void *context, int64_t task, int worker) {
    const search *s = context;
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = s->q->inputs, O = s->q->outputs, group = task / s->blocks;
    const int64_t first = group * O + task % s->blocks * QK_ROW_BLOCK, end = (group + 1) * O;
    const int64_t m = end - first < QK_ROW_BLOCK ? end - first : QK_ROW_BLOCK;
    double *d = s->scratch + (int64_t)worker * 2 * QK_ROW_BLOCK * K, *dg = d + QK_ROW_BLOCK * K;
    const qk_grid grid = s->problem->grid;
    for (int f = 0; f < s->factor_count; f++) {
        for (int64_t i = 0; i < m; i++) {
            const float *w = s->problem->weight + (first + i) * K;
            const qk_affine a = affine_of(s, first + i, s->factors[(first + i) * s->factor_count + f]);
            const float zp = (float)a.zero_point, lo = (float)grid.qmin, hi = (float)grid.qmax;
            for (int64_t k = 0; k < K; k++) {
                float q = rintf(w[k] / a.scale) + zp;
                q = q < lo ? lo : q;
                q = q > hi ? hi : q;
                d[i * K + k] = (double)((q - zp) * a.scale) - (double)w[k];
            }
        }
        qk_dgemm(dg, d, s->q->gram + group * K * K,
                 (qk_gemm_shape){.m = m, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
        for (int64_t i = 0; i < m; i++)
            s->error[(first + i) * s->factor_count + f] = kernels->dot(d + i * K, dg + i * K, (size_t)K);
    }
}

/* power[row] = w G w', of a block of rows. */
static void power_task(void *context, int64_t task, int worker) {
    const search *s = context;
    const int64_t K = s->q->inputs, O = s->q->outputs, group = task / s->blocks;
    const int64_t first = group * O + task % s->blocks * QK_ROW_BLOCK, end = (group + 1) * O;
    const int64_t m = end - first < QK_ROW_BLOCK ? end - first : QK_ROW_BLOCK;
    double *w = s->scratch + (int64_t)worker * 2 * QK_ROW_BLOCK * K, *wg = w + QK_ROW_BLOCK * K;
    for (int64_t i = 0; i < m * K; i++) w[i] = s->problem->weight[first * K + i];
    qk_dgemm(wg, w, s->q->gram + group * K * K, (qk_gemm_shape){.m = m, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
    for (int64_t i = 0; i < m; i++) s->power[first + i] = qk_kernels_get()->dot(w + i * K, wg + i * K, (size_t)K);
}

static void add_mean(double *power, int64_t rows) {
    double mean = 0;
    for (int64_t r = 0; r < rows; r++) mean += power[r] / (double)rows;
    for (int64_t r = 0; r < rows; r++) power[r] += mean;
}

/* The best factor of each row, or of all together. Equal errors: the earlier, which clips less. */
static void pick(const search *s, int64_t rows, bool per_channel, double *best, double *best_error) {
    const int n = s->factor_count;
    for (int64_t row = 0; row < (per_channel ? rows : 1); row++)
        for (int f = 0; f < n; f++) {
            double error = 0;
            for (int64_t r = row; r < (per_channel ? row + 1 : rows); r++)
                if (s->power[r] > 0) error += s->error[r * n + f] / s->power[r];
            if (error < best_error[row]) {
                best_error[row] = error;
                best[row] = s->factors[row * n + f];
            }
        }
}

static void ranges_of_weight(const qk_scale_problem *p, int64_t rows, int64_t K, double *lo, double *hi) {
    double all_lo = 0, all_hi = 0;
    for (int64_t r = 0; r < rows; r++) {
        lo[r] = hi[r] = 0;
        for (int64_t k = 0; k < K; k++) {
            lo[r] = fmin(lo[r], p->weight[r * K + k]);
            hi[r] = fmax(hi[r], p->weight[r * K + k]);
        }
        all_lo = fmin(all_lo, lo[r]);
        all_hi = fmax(all_hi, hi[r]);
    }
    for (int64_t r = 0; r < rows && !p->per_channel; r++) {
        lo[r] = all_lo;
        hi[r] = all_hi;
    }
}

/* A little of the weight's own error, for inputs that calibration data hardly excites. */
static void damp(qk_quadratic *q) {
    const int64_t K = q->inputs;
    for (int64_t g = 0; g < q->groups; g++) {
        double *gram = q->gram + g * K * K, trace = 0;
        for (int64_t k = 0; k < K; k++) trace += gram[k * K + k];
        for (int64_t k = 0; k < K; k++) gram[k * K + k] += 1e-4 * trace / (double)K;
    }
}

qk_status qk_choose_weight_scale(const qk_layer *layer, const qk_scale_problem *problem, qk_affine *affine,
                                 qk_pool *pool) {
    qk_quadratic q;
    QK_TRY(qk_quadratic_init(&q, layer, QK_FITTED, false));
    const int64_t K = q.inputs, rows = q.groups * q.outputs;
    const int64_t blocks = (q.outputs + QK_ROW_BLOCK - 1) / QK_ROW_BLOCK;
    double *lo = QK_NEW(double, rows), *hi = QK_NEW(double, rows), *best = QK_NEW(double, rows);
    double *best_error = QK_NEW(double, rows), *factors = QK_NEW(double, rows * MAX_FACTORS);
    double *error = QK_NEW(double, rows * MAX_FACTORS), *power = QK_NEW(double, rows);
    double *scratch = QK_NEW(double, (int64_t)qk_pool_threads(pool) * 2 * QK_ROW_BLOCK * K);
    qk_status status = QK_E_NOMEM;
    if (lo && hi && best && best_error && factors && error && power && scratch) {
        if (problem->bias_free) qk_quadratic_centre(&q);
        damp(&q);
        ranges_of_weight(problem, rows, K, lo, hi);
        search s = {&q, problem, lo, hi, blocks, COARSE, factors, error, power, scratch};
        for (int64_t r = 0; r < rows; r++) {
            best[r] = 1;
            best_error[r] = INFINITY;
            for (int f = 0; f < COARSE; f++) factors[r * COARSE + f] = exp2(-f / 4.0);
        }
        qk_blas_enter();
        qk_pool_run(pool, power_task, &s, q.groups * blocks);
        add_mean(power, rows);
        qk_pool_run(pool, search_task, &s, q.groups * blocks);
        pick(&s, rows, problem->per_channel, best, best_error);
        s.factor_count = FINE;
        for (int64_t r = 0; r < rows; r++)
            for (int f = 0; f < FINE; f++)
                factors[r * FINE + f] =
                    fmin(1, best[problem->per_channel ? r : 0] * exp2((f < 3 ? 3 - f : 2 - f) / 16.0));
        qk_pool_run(pool, search_task, &s, q.groups * blocks);
        qk_blas_leave();
        pick(&s, rows, problem->per_channel, best, best_error);
        for (int64_t r = 0; r < (problem->per_channel ? rows : 1); r++) affine[r] = affine_of(&s, r, best[r]);
        status = QK_OK;
    }
    free(lo);
    free(hi);
    free(best);
    free(best_error);
    free(factors);
    free(error);
    free(power);
    free(scratch);
    qk_quadratic_destroy(&q);
    return status;
}
