/* Cholesky factors of damped Gram matrices, some of which are kept. */
#ifndef QK_DAMPED_FACTOR_H
#define QK_DAMPED_FACTOR_H

#include "base/run.h"
#include "moments/quadratic.h"

enum { QK_DAMPED_FACTORS = 4 };

typedef struct {
    double damping;
    bool *known, *sound; /* (groups): it was tried; G + lam I is positive definite, so the factor is there */
    float *l;            /* (groups, K, K): zero above the diagonal */
    double *exact;       /* the same where K <= QK_FEW_INPUTS, else NULL */
} qk_damped_factor;

typedef struct {
    int64_t groups, inputs;
    int count, next; /* factors that fit; the one that a new damping replaces */
    bool float64;    /* float32 was not enough for one so far */
    qk_damped_factor factor[QK_DAMPED_FACTORS];
} qk_damped_factors;

/* Nothing is allocated before a factor is asked for. */
void qk_damped_factors_init(qk_damped_factors *f, int64_t groups, int64_t inputs);
void qk_damped_factors_destroy(qk_damped_factors *f);

/* The matrix whose factor is wanted, in both precisions: gram (groups,K,K) holds G + lam I in float32; where that is
 * not enough, it is moments->gram + extra extra' + lam I, extra (groups,K) or NULL. lam (groups). */
typedef struct {
    const float *gram;
    const qk_quadratic *moments;
    const double *extra, *lam;
} qk_damped_gram;

/* The factors of the groups `wanted` (groups), made or kept. QK_E_NOMEM, QK_E_CANCELLED. */
qk_status qk_damped_factors_get(qk_damped_factors *f, double damping, const qk_damped_gram *of, const bool *wanted,
                                qk_run *run, const qk_damped_factor **factor);

#endif
