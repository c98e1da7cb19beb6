/* One candidate for the integers of some outputs, and what it changes of the held-out error. */
#include "solvers/candidate.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "solvers/closest_point.h"
#include "solvers/coordinate_descent.h"
#include "solvers/gptq.h"

void qk_damp(const qk_integer_solver *s, qk_damped *damped) {
    const int64_t K = s->solving->inputs;
    for (int64_t group = 0; group < s->solving->groups; group++) {
        const double *gram = s->solving->gram + group * K * K;
        float *to = damped->gram + group * K * K;
        double trace = 0;
        for (int64_t k = 0; k < K; k++) trace += gram[k * K + k];
        const double lam = damped->lam[group] = damped->damping * trace / (double)K;
        for (int64_t k = 0; k < K; k++) to[k * K + k] = (float)(gram[k * K + k] + lam);
        damped->factored[group] = false;
    }
}

void qk_factor(const qk_integer_solver *s, qk_damped *damped, int64_t group) {
    const int64_t K = s->solving->inputs, O = s->solving->outputs;
    const double lam = damped->lam[group];
    double *factor = damped->factor + group * K * K, *target = damped->target + group * O * K, trace = 0;
    memcpy(factor, s->solving->gram + group * K * K, (size_t)(K * K) * sizeof *factor);
    for (int64_t k = 0; k < K; k++) trace += factor[k * K + k];
    for (int64_t k = 0; k < K; k++) factor[k * K + k] += lam;
    if (!(trace > 0) || !qk_cholesky(factor, K)) return;
    damped->factored[group] = true;
    qk_to_float(damped->l + group * K * K, factor, K * K);
    for (int64_t i = 0; i < O * K; i++)
        target[i] = s->solving->cross[group * O * K + i] + lam * s->start->weight[group * O * K + i];
    qk_cholesky_solve(target, O, factor, K);
}

/* The best bias for the weights w: b = m - w mu; as an integer. */
static int32_t best_bias(const qk_integer_solver *s, int64_t row, double wmu) {
    const qk_quantized_layer *l = s->start;
    const double b = s->moments[QK_FITTED].mean_y[row] - wmu;
    return (int32_t)qk_clip(rint(b / l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

/* means[i] = w_i mu for every lane; w (K, QK_LANES). */
static void means_of(const float *w, const double *mu, int64_t K, double means[QK_LANES]) {
    for (int i = 0; i < QK_LANES; i++) means[i] = 0;
    for (int64_t k = 0; k < K; k++)
        for (int i = 0; i < QK_LANES; i++) means[i] += mu[k] * (double)w[k * QK_LANES + i];
}

/* What the candidate changes of the held-out error: d'Gd + 2 d'(G w0 - c), and the mean's square. change (K, QK_LANES):
 * w - w0. product: scratch of the same shape. */
static void judge_block(const qk_integer_solver *s, const qk_trial *trial, qk_row_block block, const float *w,
                        const float *change, const float *slope, float *product) {
    const qk_quadratic *fitted = &s->moments[QK_FITTED], *held_out = &s->moments[QK_HELD_OUT];
    const int64_t K = fitted->inputs;
    double sums[QK_LANES] = {0}, means[QK_LANES], moved[QK_LANES];
    qk_sgemm(product, s->judge + block.group * K * K, change,
             (qk_gemm_shape){.m = K, .n = QK_LANES, .k = K, .lda = K, .ldb = QK_LANES, .ldc = QK_LANES});
    for (int64_t k = 0; k < K * QK_LANES; k++) sums[k % QK_LANES] += (double)(change[k] * (product[k] + 2 * slope[k]));
    means_of(w, fitted->mean_x + block.group * K, K, means);
    for (int64_t i = 0; i < block.count && s->bias_free; i++)
        trial->bias_q[block.first + i] = best_bias(s, block.first + i, means[i]);
    means_of(w, held_out->mean_x + block.group * K, K, means);
    means_of(change, held_out->mean_x + block.group * K, K, moved);
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t row = block.first + i;
        const double before = s->bias_before[row] + means[i] - moved[i] - held_out->mean_y[row];
        const double bias = s->bias_free ? (double)s->start->bias_scale[row] * trial->bias_q[row] : s->bias_before[row];
        const double after = bias + means[i] - held_out->mean_y[row];
        trial->gain[row] = sums[i] + after * after - before * before;
    }
}

/* Where the scales of an input begin. */
static int64_t scales_at(const qk_integer_rows *rows, int64_t k) {
    return rows->scale_block > 0 ? k / rows->scale_block * QK_LANES : 0;
}

/* w = scale (q - zp); both (K, QK_LANES). */
static void values_of(const qk_integer_rows *rows, const float *q, float *w) {
    for (int64_t k = 0; k < rows->inputs; k++) {
        const float *scale = rows->scale + scales_at(rows, k), *zp = rows->zp + scales_at(rows, k);
        const int64_t at = k * QK_LANES;
        for (int i = 0; i < QK_LANES; i++) w[at + i] = scale[i] * (q[at + i] - zp[i]);
    }
}

/* What the integers at hand change of the weight: scale (q - q0). */
static void changes_of(const qk_integer_rows *rows, const float *q0, float *change) {
    for (int64_t k = 0; k < rows->inputs; k++) {
        const float *scale = rows->scale + scales_at(rows, k);
        const int64_t at = k * QK_LANES;
        for (int i = 0; i < QK_LANES; i++) change[at + i] = scale[i] * (rows->q[at + i] - q0[at + i]);
    }
}

void qk_try_block(const qk_integer_solver *s, const qk_trial *trial, int64_t index, int worker) {
    const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
    const qk_damped *damped = trial->damped;
    const int64_t K = s->solving->inputs, n = K * QK_LANES, at = index * n, square = block.group * K * K;
    float *w = s->scratch + worker * QK_LANE_ARRAYS * n, *change = w + n, *residual = change + n;
    float *scratch = residual + n;
    const bool rounds = trial->candidate == QK_ROUNDING_DESCENT;
    const int64_t scale_block = s->scales > 1 ? s->start->scale_block : 0, scales = index * s->scales * QK_LANES;
    qk_integer_rows rows = {K, s->scale + scales, s->zp + scales, s->lo + at, s->hi + at, trial->q + at, scale_block};
    memcpy(rows.q, s->q0 + at, (size_t)n * sizeof *rows.q);
    if (rounds && damped->factored[block.group] && K <= QK_FEW_INPUTS) {
        for (int i = 0; i < (int)block.count; i++)
            qk_closest_point(&rows, i, damped->target + (block.first + i) * K, damped->factor + square);
    } else if (rounds && damped->factored[block.group]) {
        float *target = scratch + 2 * n;
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < QK_LANES; i++)
                target[k * QK_LANES + i] = i < block.count ? (float)damped->target[(block.first + i) * K + k] : 0;
        qk_gptq(&rows, target, damped->l + square, scratch);
    }
    if (rounds || trial->candidate == QK_DESCENT) {
        const float *gram = damped->gram + square, lam = (float)damped->lam[block.group];
        values_of(&rows, s->q0 + at, w); /* at the start */
        for (int64_t j = 0; j < n; j++) residual[j] = s->residual0[at + j] + lam * (w[j] - s->weight[at + j]);
        changes_of(&rows, s->q0 + at, change);
        if (rounds)
            qk_sgemm(
                residual, gram, change,
                (qk_gemm_shape){
                    .m = K, .n = QK_LANES, .k = K, .lda = K, .ldb = QK_LANES, .ldc = QK_LANES, .accumulate = true});
        qk_coordinate_descent(&rows, gram, residual, s->options->max_sweeps, scratch);
    }
    values_of(&rows, rows.q, w);
    changes_of(&rows, s->q0 + at, change);
    judge_block(s, trial, block, w, change, s->slope + at, residual);
}
