/* Problems of integer rows, shared by the tests of their solvers. */
#ifndef QK_INTEGER_ROWS_CASES_H
#define QK_INTEGER_ROWS_CASES_H

#include "solvers/closest_point.h"
#include "solvers/coordinate_descent.h"
#include "solvers/gptq.h"

#include "base/blas.h"
#include "qk_test.h"

enum { SCALE_BLOCK = 5 }; /* inputs that share a scale in problems with an odd seed; in the others all do */

/* Some lanes with a random quadratic (w - target) G (w - target)', w the weights. The other lanes are as least squares
 * leaves them: scale 1, everything else 0. */
typedef struct {
    int64_t count; /* lanes in use */
    qk_integer_rows rows;
    float *gram, *factor, *target, *residual, *scratch;
    float *scale, *zp, *lo, *hi;
} problem;

static inline problem problem_new(uint64_t seed, int64_t count, int64_t K) {
    const int64_t scales = K / SCALE_BLOCK + 1;
    problem p = {.count = count,
                 .gram = MEMORY(float, K * K),
                 .factor = MEMORY(float, K * K),
                 .target = MEMORY(float, K * QK_LANES),
                 .residual = MEMORY(float, K * QK_LANES),
                 .scratch = MEMORY(float, 2 * K * QK_LANES),
                 .scale = MEMORY(float, scales * QK_LANES),
                 .zp = MEMORY(float, scales * QK_LANES),
                 .lo = MEMORY(float, K * QK_LANES),
                 .hi = MEMORY(float, K * QK_LANES)};
    for (int64_t i = 0; i < scales * QK_LANES; i++) p.scale[i] = 1;
    p.rows = (qk_integer_rows){.inputs = K,
                               .scale = p.scale,
                               .zp = p.zp,
                               .lo = p.lo,
                               .hi = p.hi,
                               .q = MEMORY(float, K * QK_LANES),
                               .scale_block = seed % 2 ? SCALE_BLOCK : 0};
    return p;
}

/* Where the scale and zero point of input j stand. */
static inline int64_t scale_at(const problem *p, int64_t lane, int64_t j) {
    return (p->rows.scale_block ? j / SCALE_BLOCK * QK_LANES : 0) + lane;
}

static inline void problem_free(problem p) {
    void *arrays[] = {p.gram, p.factor, p.target, p.residual, p.scratch, p.scale, p.zp, p.lo, p.hi, p.rows.q};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static inline double weight_of(const problem *p, int64_t lane, int64_t j) {
    const int64_t at = scale_at(p, lane, j);
    return (double)p->scale[at] * ((double)p->rows.q[j * QK_LANES + lane] - p->zp[at]);
}

/* Half the derivative of the error by w_j. */
static inline double slope_of(const problem *p, int64_t lane, int64_t j) {
    const int64_t K = p->rows.inputs;
    double slope = 0;
    for (int64_t k = 0; k < K; k++)
        slope += (weight_of(p, lane, k) - p->target[k * QK_LANES + lane]) * p->gram[k * K + j];
    return slope;
}

static inline double error_of(const problem *p, int64_t lane) {
    double error = 0;
    for (int64_t j = 0; j < p->rows.inputs; j++)
        error += slope_of(p, lane, j) * (weight_of(p, lane, j) - p->target[j * QK_LANES + lane]);
    return error;
}

static inline void set_residual(problem *p) {
    for (int64_t i = 0; i < p->rows.inputs * QK_LANES; i++)
        p->residual[i] = (float)slope_of(p, i % QK_LANES, i / QK_LANES);
}

/* A box of 2 + 2 box integers around each target, zero points, and a start inside of the box. */
static inline void set_box(problem *p, qk_random *r, int box) {
    for (int64_t lane = 0; lane < p->count; lane++) {
        for (int64_t b = 0; b <= p->rows.inputs / SCALE_BLOCK; b++)
            p->zp[b * QK_LANES + lane] = (float)qk_random_below(r, 11) - 5;
        for (int64_t at = lane; at < p->rows.inputs * QK_LANES; at += QK_LANES) {
            const int64_t scale = scale_at(p, lane, at / QK_LANES);
            p->lo[at] = floorf(p->target[at] / p->scale[scale]) + p->zp[scale] - (float)box;
            p->hi[at] = p->lo[at] + 1 + 2 * (float)box;
            p->rows.q[at] = p->lo[at] + (float)qk_random_below(r, 2);
        }
    }
}

static inline problem real_problem(uint64_t seed, int64_t count, int64_t K, int box) {
    qk_random r = {seed};
    problem p = problem_new(seed, count, K);
    double *a = MEMORY(double, K * K), *gram = MEMORY(double, K * K);
    /* inputs that share a part: a badly conditioned G, as real layers have */
    for (int64_t i = 0; i < K * K; i++) a[i] = qk_uniform(&r, -1, 1) + 0.3 * qk_uniform(&r, 0, 1);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) {
            gram[i * K + j] = i == j ? 0.1 : 0;
            for (int64_t k = 0; k < K; k++) gram[i * K + j] += (a[i * K + k] + 0.5) * (a[j * K + k] + 0.5) / (double)K;
        }
    for (int64_t i = 0; i < K * K; i++) p.gram[i] = (float)gram[i];
    CHECK(qk_cholesky(gram, K));
    for (int64_t i = 0; i < K * K; i++) p.factor[i] = (float)gram[i];
    for (int64_t lane = 0; lane < count; lane++) {
        for (int64_t b = 0; b <= K / SCALE_BLOCK; b++) p.scale[b * QK_LANES + lane] = (float)qk_uniform(&r, 0.05, 0.2);
        for (int64_t k = 0; k < K; k++) p.target[k * QK_LANES + lane] = (float)qk_uniform(&r, -1, 1);
    }
    set_box(&p, &r, box);
    set_residual(&p);
    free(gram);
    free(a);
    return p;
}

/* L has ones on its diagonal and some 2 and -2 below it, scales are 1/8 and 1/4, targets odd multiples of 1/64. Then
 * every residual and every sum that is carried on is a small multiple of 1/64, and what successive rounding rounds is
 * an odd multiple of 1/16: never halfway between two integers. A quotient of coordinate descent is a fraction with a
 * small denominator: halfway, or far from it. */
static inline problem exact_problem(uint64_t seed, int64_t count, int64_t K, int box) {
    qk_random r = {seed};
    problem p = problem_new(seed, count, K);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j <= i; j++) {
            const bool set = qk_random_below(&r, (uint64_t)K + 2) < 3;
            p.factor[i * K + j] = i == j ? 1 : set ? (qk_random_below(&r, 2) ? 2.0f : -2.0f) : 0;
        }
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++)
            for (int64_t k = 0; k <= (i < j ? i : j); k++)
                p.gram[i * K + j] += p.factor[i * K + k] * p.factor[j * K + k];
    for (int64_t lane = 0; lane < count; lane++) {
        for (int64_t b = 0; b <= K / SCALE_BLOCK; b++) p.scale[b * QK_LANES + lane] = b % 2 ? 0.25f : 0.125f;
        for (int64_t k = 0; k < K; k++) p.target[k * QK_LANES + lane] = (2 * (float)qk_random_below(&r, 65) - 65) / 64;
    }
    set_box(&p, &r, box);
    set_residual(&p);
    return p;
}

static inline float *copy_of(const float *x, int64_t n) {
    float *copy = MEMORY(float, n);
    memcpy(copy, x, (size_t)n * sizeof *copy);
    return copy;
}

static inline float clip(double x, float lo, float hi) { return (float)(x < lo ? lo : x > hi ? hi : x); }

/* The least error over all points of one lane's box. */
static inline double brute_force(const problem *p, int64_t lane) {
    const int64_t K = p->rows.inputs, last = K * QK_LANES;
    problem tried = *p;
    tried.rows.q = copy_of(p->lo, last);
    double best = INFINITY;
    for (int64_t at = lane; at < last;) {
        best = fmin(best, error_of(&tried, lane));
        for (at = lane; at < last && ++tried.rows.q[at] > p->hi[at]; at += QK_LANES) /* the next point */
            tried.rows.q[at] = p->lo[at];
    }
    free(tried.rows.q);
    return best;
}

#endif
