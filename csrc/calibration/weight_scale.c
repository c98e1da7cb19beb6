/* CalibMethod.MinOutputMSE: the weight scale with the least error of the layer's output; CalibMethod.MinMSE: with the
 * least error of the weight itself, as if all inputs were independent and of the same size.
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
#include "kernels/kernels.h"
#include "moments/quadratic.h"

enum {
    COARSE = 25, /* factors 2^(-i/4): 1 ... 1/64 */
    FINE = 6,    /* three on each side of the best, 2^(-1/16) apart */
    MAX_FACTORS = COARSE,
};

typedef struct {
    const qk_quadratic *q;
    const qk_scale_problem *problem;
    int64_t block;         /* rows at a time */
    const float *gram;     /* of q, (groups, K, K); NULL: the identity */
    const double *lo, *hi; /* (rows) range of each output channel's scale before the factor */
    int factor_count;
    const double *factors;     /* (rows, factor_count) */
    double *error;             /* (rows, factor_count) */
    double *power;             /* (rows) */
    double *best, *best_error; /* (rows) */
    float *scratch;            /* (threads, 2, block, K) */
} search;

static qk_affine affine_of(const search *s, int64_t row, double factor) {
    return qk_affine_from_range(s->lo[row] * factor, s->hi[row] * factor, s->problem->grid);
}

/* d G d' of a block's rows d (count, K), row by row; dg: scratch of d's shape. */
static void square(const search *s, qk_row_block block, const float *d, float *dg, double *to, int64_t stride) {
    const int64_t K = s->q->inputs;
    if (s->gram)
        qk_sgemm(dg, d, s->gram + block.group * K * K,
                 (qk_gemm_shape){.m = block.count, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
    for (int64_t i = 0; i < block.count; i++)
        to[(block.first + i) * stride] = qk_kernels_get()->dot_f32(d + i * K, (s->gram ? dg : d) + i * K, (size_t)K);
}

/* A symmetric grid with more integers below 0 than above (-8 .. 7) holds the largest weight above 0 from here on. */
static double widest_factor(const qk_grid *grid) {
    const double least = grid->qmin, most = grid->qmax;
    return grid->symmetric && -least > most ? (most - least) / (2 * most) : 1;
}

/* The output error of a block of rows under every factor. */
static void search_task(void *context, int64_t index, int worker) {
    const search *s = context;
    const qk_row_block block = qk_row_block_at(s->q, s->block, index);
    const int64_t K = s->q->inputs;
    float *d = s->scratch + worker * 2 * s->block * K;
    for (int f = 0; f < s->factor_count; f++) {
        for (int64_t i = 0; i < block.count; i++) {
            const int64_t row = block.first + i;
            const float *w = s->problem->weight + row * K;
            const qk_affine affine = affine_of(s, row, s->factors[row * s->factor_count + f]);
            qk_fake_quant(d + i * K, w, (size_t)K, affine, s->problem->grid);
            for (int64_t k = 0; k < K; k++) d[i * K + k] -= w[k];
        }
        square(s, block, d, d + s->block * K, s->error + f, s->factor_count);
    }
}

/* power[row] = w G w', of a block of rows. */
static void power_task(void *context, int64_t index, int worker) {
    const search *s = context;
    const qk_row_block block = qk_row_block_at(s->q, s->block, index);
    const int64_t K = s->q->inputs;
    square(s, block, s->problem->weight + block.first * K, s->scratch + worker * 2 * s->block * K, s->power, 1);
}

static void add_mean(double *power, int64_t rows) {
    double mean = 0;
    for (int64_t r = 0; r < rows; r++) mean += power[r] / (double)rows;
    for (int64_t r = 0; r < rows; r++) power[r] += mean;
}

/* The best factor of each row, or of all together. Equal errors: the earlier, which clips less. */
static void pick(const search *s, int64_t rows) {
    const int n = s->factor_count;
    const bool per_channel = s->problem->per_channel;
    for (int64_t row = 0; row < (per_channel ? rows : 1); row++)
        for (int f = 0; f < n; f++) {
            double error = 0;
            for (int64_t r = row; r < (per_channel ? row + 1 : rows); r++)
                if (s->power[r] > 0) error += s->error[r * n + f] / s->power[r];
            if (error < s->best_error[row]) {
                s->best_error[row] = error;
                s->best[row] = s->factors[row * n + f];
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

/* The factors of the coarse grid, then those around the best one. */
static void run(search *s, int64_t rows, double *factors, qk_affine *affine, qk_pool *pool) {
    const bool per_channel = s->problem->per_channel;
    const int64_t blocks = qk_row_blocks(s->q, s->block);
    s->factor_count = COARSE;
    for (int64_t r = 0; r < rows; r++) {
        s->best[r] = 1;
        s->best_error[r] = INFINITY;
        for (int f = 0; f < COARSE; f++) factors[r * COARSE + f] = exp2(-f / 4.0);
    }
    qk_pool_run(pool, search_task, s, blocks);
    pick(s, rows);
    const double widest = widest_factor(&s->problem->grid);
    s->factor_count = FINE;
    for (int64_t r = 0; r < rows; r++)
        for (int f = 0; f < FINE; f++)
            factors[r * FINE + f] = fmin(widest, s->best[per_channel ? r : 0] * exp2((f < 3 ? 3 - f : 2 - f) / 16.0));
    qk_pool_run(pool, search_task, s, blocks);
    pick(s, rows);
    for (int64_t r = 0; r < (per_channel ? rows : 1); r++) affine[r] = affine_of(s, r, s->best[r]);
}

/* Many, since BLAS copies all of G for each product with it; but several tasks for the threads. */
static int64_t rows_at_once(const qk_quadratic *q) {
    const int64_t quarter = q->outputs / 4;
    return quarter < QK_ROW_BLOCK ? QK_ROW_BLOCK : quarter < 256 ? quarter : 256;
}

/* gram: of q, NULL for the identity. */
static qk_status choose(const qk_quadratic *q, const float *gram, const qk_scale_problem *problem, qk_affine *affine,
                        qk_pool *pool) {
    const int64_t K = q->inputs, rows = q->groups * q->outputs;
    double *lo = QK_NEW(double, rows), *hi = QK_NEW(double, rows), *best = QK_NEW(double, rows);
    double *best_error = QK_NEW(double, rows), *factors = QK_NEW(double, rows, MAX_FACTORS);
    double *error = QK_NEW(double, rows, MAX_FACTORS), *power = QK_NEW(double, rows);
    const int64_t block = rows_at_once(q);
    float *scratch = QK_NEW(float, qk_pool_threads(pool), 2, block, K);
    const bool ok = lo && hi && best && best_error && factors && error && power && scratch;
    if (ok) {
        ranges_of_weight(problem, rows, K, lo, hi);
        search s = {q, problem, block, gram, lo, hi, COARSE, factors, error, power, best, best_error, scratch};
        qk_blas_enter();
        if (gram) {
            qk_pool_run(pool, power_task, &s, qk_row_blocks(q, s.block));
            add_mean(power, rows);
        } else {
            for (int64_t r = 0; r < rows; r++) power[r] = 1;
        }
        run(&s, rows, factors, affine, pool);
        qk_blas_leave();
    }
    free(lo);
    free(hi);
    free(best);
    free(best_error);
    free(factors);
    free(error);
    free(power);
    free(scratch);
    return ok ? QK_OK : QK_E_NOMEM;
}

qk_status qk_choose_weight_scale(const qk_layer *layer, const qk_scale_problem *problem, qk_affine *affine,
                                 qk_pool *pool) {
    qk_quadratic q;
    QK_TRY(qk_quadratic_init(&q, layer, QK_FITTED, false));
    const int64_t squares = q.groups * q.inputs * q.inputs;
    float *gram = QK_NEW(float, squares);
    qk_status status = QK_E_NOMEM;
    if (gram) {
        if (problem->bias_free) qk_quadratic_centre(&q);
        damp(&q);
        for (int64_t i = 0; i < squares; i++) gram[i] = (float)q.gram[i];
        status = choose(&q, gram, problem, affine, pool);
    }
    free(gram);
    qk_quadratic_destroy(&q);
    return status;
}

qk_status qk_choose_weight_scale_alone(const qk_scale_problem *problem, int64_t rows, int64_t inputs, qk_affine *affine,
                                       qk_pool *pool) {
    if (rows < 1 || inputs < 1) return QK_E_ARG;
    return choose(&(qk_quadratic){.groups = 1, .inputs = inputs, .outputs = rows}, NULL, problem, affine, pool);
}
