/* Problems of integer rows, shared by the tests of their solvers. */
#ifndef QK_INTEGER_ROWS_CASES_H
#define QK_INTEGER_ROWS_CASES_H

#include "solvers/closest_point.h"
#include "solvers/coordinate_descent.h"
#include "solvers/gptq.h"

#include "base/blas.h"
#include "base/sizes.h"
#include "qk_test.h"

/* Inputs that share a scale in problems with an odd seed; in the others all do. */
static inline int64_t scale_block_of(int64_t inputs) {
    int64_t block = 2;
    while (block < inputs && inputs % block != 0) block++;
    return qk_smaller(block, inputs);
}

/* Some lanes with a random quadratic (w - target) G (w - target)', w the weights. The other lanes are as least squares
 * leaves them: scale 1, everything else 0. */
typedef struct {
    int64_t count; /* lanes in use */
    qk_integer_rows rows;
    float *gram, *factor, *target, *residual;
    float *scale, *zp, *lo, *hi;
} problem;

static inline problem problem_new(uint64_t seed, int64_t count, int64_t K) {
    const int64_t block = seed % 2 ? scale_block_of(K) : K, scales = K / block;
    problem p = {.count = count,
                 .gram = MEMORY(float, K * K),
                 .factor = MEMORY(float, K * K),
                 .target = MEMORY(float, K * QK_LANES),
                 .residual = MEMORY(float, K * QK_LANES),
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
                               .scale_block = seed % 2 ? block : 0};
    return p;
}

static inline int64_t scales_of(const problem *p) {
    return p->rows.scale_block ? p->rows.inputs / p->rows.scale_block : 1;
}

/* Where the scale and zero point of input j stand. */
static inline int64_t scale_at(const problem *p, int64_t lane, int64_t j) {
    return (p->rows.scale_block ? j / p->rows.scale_block * QK_LANES : 0) + lane;
}

static inline void problem_free(problem p) {
    void *arrays[] = {p.gram, p.factor, p.target, p.residual, p.scale, p.zp, p.lo, p.hi, p.rows.q};
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

/* A range of 2 + 2 around integers around each target, zero points, and a start inside of the range. */
static inline void set_range(problem *p, qk_random *r, int around) {
    for (int64_t lane = 0; lane < p->count; lane++) {
        for (int64_t b = 0; b < scales_of(p); b++) p->zp[b * QK_LANES + lane] = (float)qk_random_below(r, 11) - 5;
        for (int64_t at = lane; at < p->rows.inputs * QK_LANES; at += QK_LANES) {
            const int64_t scale = scale_at(p, lane, at / QK_LANES);
            p->lo[at] = floorf(p->target[at] / p->scale[scale]) + p->zp[scale] - (float)around;
            p->hi[at] = p->lo[at] + 1 + 2 * (float)around;
            p->rows.q[at] = p->lo[at] + (float)qk_random_below(r, 2);
        }
    }
}

static inline problem real_problem(uint64_t seed, int64_t count, int64_t K, int around) {
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
        for (int64_t b = 0; b < scales_of(&p); b++) p.scale[b * QK_LANES + lane] = (float)qk_uniform(&r, 0.05, 0.2);
        for (int64_t k = 0; k < K; k++) p.target[k * QK_LANES + lane] = (float)qk_uniform(&r, -1, 1);
    }
    set_range(&p, &r, around);
    set_residual(&p);
    free(gram);
    free(a);
    return p;
}

/* L has ones on its diagonal and some 2 and -2 below it, scales are 1/8 and 1/4, targets odd multiples of 1/64. Then
 * every residual and every sum that is carried on is a small multiple of 1/64, and what GPTQ rounds is
 * an odd multiple of 1/16: never halfway between two integers. A quotient of coordinate descent is a fraction with a
 * small denominator: halfway, or far from it. */
static inline problem exact_problem(uint64_t seed, int64_t count, int64_t K, int around) {
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
        for (int64_t b = 0; b < scales_of(&p); b++) p.scale[b * QK_LANES + lane] = b % 2 ? 0.25f : 0.125f;
        for (int64_t k = 0; k < K; k++) p.target[k * QK_LANES + lane] = (2 * (float)qk_random_below(&r, 65) - 65) / 64;
    }
    set_range(&p, &r, around);
    set_residual(&p);
    return p;
}

/* ---- the solvers, which take lines ------------------------------------------------------------ */

typedef struct {
    qk_quantized_layer start;
    qk_batch_part part;
    qk_batch batch;
    qk_run run;
    qk_sweep sweep;
    float *scale;
    int32_t *zp;
} line_form;

/* The lanes in use as a batch of one block. */
static inline void line_form_init(line_form *f, problem *p) {
    const int64_t K = p->rows.inputs, n = scales_of(p), all = p->count * K;
    *f = (line_form){.scale = MEMORY(float, p->count * n), .zp = MEMORY(int32_t, p->count * n)};
    for (int64_t i = 0; i < p->count * n; i++) {
        f->scale[i] = p->scale[i % n * QK_LANES + i / n];
        f->zp[i] = (int32_t)p->zp[i % n * QK_LANES + i / n];
    }
    f->start = (qk_quantized_layer){.weight_scale = f->scale, .weight_zp = f->zp, .scale_block = p->rows.scale_block};
    f->part = (qk_batch_part){{0, 0, p->count}, 0};
    f->batch = (qk_batch){.inputs = K,
                          .lines = p->count,
                          .blocks = 1,
                          .pieces = 1,
                          .block = &f->part,
                          .piece = &f->part,
                          .start = &f->start,
                          .w0 = MEMORY(float, all),
                          .lo = MEMORY(float, all),
                          .hi = MEMORY(float, all)};
    f->run = (qk_run){.pool = qk_pool_new(1)};
    CHECK(qk_sweep_new(&f->sweep, &f->run, 1, K, n) == QK_OK);
    f->sweep.batch = &f->batch;
    f->sweep.q = MEMORY(float, all);
    f->sweep.lines = MEMORY(float, all);
    const float *from[] = {p->lo, p->hi, p->rows.q, p->residual};
    float *to[] = {f->batch.lo, f->batch.hi, f->sweep.q, f->sweep.lines};
    for (int i = 0; i < 4; i++) qk_lines_of(&f->batch, &f->part, from[i], 0, K, to[i]);
}

/* Writes integers and residuals back to the lanes. */
static inline void line_form_end(line_form *f, problem *p) {
    qk_lanes_of(&f->batch, &f->part, f->sweep.q, 0, p->rows.inputs, p->rows.q);
    qk_lanes_of(&f->batch, &f->part, f->sweep.lines, 0, p->rows.inputs, p->residual);
    void *arrays[] = {f->batch.w0, f->batch.lo, f->batch.hi, f->sweep.q, f->sweep.lines, f->scale, f->zp};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    qk_sweep_destroy(&f->sweep);
    qk_pool_free(f->run.pool);
}

static inline void descend(problem *p, int sweeps) {
    line_form f;
    line_form_init(&f, p);
    f.sweep.matrix = p->gram;
    CHECK(qk_coordinate_descent(&f.sweep, sweeps) == QK_OK);
    line_form_end(&f, p);
}

/* From the present q, which has the residual; that of what was found takes its place. */
static inline void gptq(problem *p) {
    const int64_t K = p->rows.inputs;
    float *errors = MEMORY(float, p->count * K);
    line_form f;
    line_form_init(&f, p);
    f.sweep.matrix = p->factor;
    for (int64_t i = 0; i < p->count * K; i++) f.batch.w0[i] = (float)weight_of(p, i / K, i % K);
    qk_blas_enter();
    CHECK(qk_gptq(&f.sweep, errors) == QK_OK);
    qk_blas_leave();
    line_form_end(&f, p);
    free(errors);
}

static inline float *copy_of(const float *x, int64_t n) {
    float *copy = MEMORY(float, n);
    memcpy(copy, x, (size_t)n * sizeof *copy);
    return copy;
}

static inline float clip(double x, float lo, float hi) { return (float)(x < lo ? lo : x > hi ? hi : x); }

/* The least error over all points of one lane's range. */
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
