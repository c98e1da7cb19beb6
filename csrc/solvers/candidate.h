/* One candidate for the integers of a layer, and what least_squares.c shares with it: the layer whose integers are
 * sought. */
#ifndef QK_CANDIDATE_H
#define QK_CANDIDATE_H

#include <math.h>

#include "moments/quadratic.h"
#include "solvers/integer_rows.h"

/* What a damping makes of the moments that candidates minimise: lam = damping * mean diagonal of G, by group. */
typedef struct {
    double damping;
    double *lam;    /* (groups) */
    float *gram;    /* (groups,K,K) G + lam I */
    bool rounds;    /* a trial needs what follows, for successive rounding */
    bool *factored; /* (groups): it is there */
    double *factor; /* (groups,K,K) Cholesky factor of G + lam I */
    float *l;       /* the same */
    double *target; /* (rows,K) W* = (C + lam W)(G + lam I)^-1 */
} qk_damped;

/* A way to integers, and what it led to. */
typedef struct {
    qk_candidate candidate;
    const qk_damped *damped;
    float *q;        /* (blocks, K, QK_LANES) */
    int32_t *bias_q; /* (rows) */
    double *gain;    /* (rows): change of the held-out error */
} qk_trial;

typedef struct {
    const qk_quantized_layer *start;
    const qk_least_squares_options *options;
    qk_pool *pool;
    qk_quadratic moments[2];     /* centred, by qk_set; the caller's memory */
    qk_quadratic fixed;          /* the fitted moments with the bias fixed, where it stays */
    const qk_quadratic *solving; /* the one of them that candidates minimise */
    bool bias_free;
    int64_t rows, blocks;
    qk_damped *damped; /* (slots): side by side, as many as memory allows */
    qk_trial *trials;  /* (2 slots) */
    int slots;
    float *judge; /* (groups,K,K) held-out Gram matrix */
    /* By block, (blocks, K, QK_LANES): float weight, box, start, residual w G - c of the start, half the slope of the
     * held-out error there, the best candidate. */
    float *weight, *lo, *hi, *q0, *residual0, *slope, *best_q;
    int64_t scales;         /* per row */
    float *scale, *zp;      /* (blocks, scales, QK_LANES) */
    double *bias_before;    /* (rows): the start's bias */
    double *bias_after;     /* (rows): the result's */
    int32_t *best_bias_q;   /* (rows) */
    double *best_gain;      /* (rows) */
    qk_candidate *winner;   /* (rows) */
    float *scratch;         /* (threads, QK_LANE_ARRAYS, K, QK_LANES) */
    double *real, *product; /* (threads, QK_ROW_BLOCK, K) */
    double *error[2];       /* (rows), by qk_set, of what is measured */
} qk_integer_solver;

enum { QK_LANE_ARRAYS = 6 }; /* scratch of a worker: w, change, residual, three of the solvers */

static inline double qk_clip(double q, int32_t lo, int32_t hi) { return fmin(fmax(q, lo), hi); }
static inline void qk_to_float(float *to, const double *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = (float)from[i];
}

/* damped->damping is set; only lam and gram follow. */
void qk_damp(const qk_integer_solver *s, qk_damped *damped);
/* All the rest, of one group. */
void qk_factor(const qk_integer_solver *s, qk_damped *damped, int64_t group);
/* The integers of one block, and whether they are better. */
void qk_try_block(const qk_integer_solver *s, const qk_trial *trial, int64_t index, int worker);

#endif
