/* One candidate for the integers of a batch: from a problem's answers to a bias and the change of the error, and what
 * the outputs hold that take it. */
#ifndef QK_CANDIDATE_H
#define QK_CANDIDATE_H

#include "solvers/integer_problem.h"

/* What each output holds so far. Arrays (rows). */
typedef struct {
    int32_t *weight_q; /* (rows, K), the caller's memory */
    int32_t *bias_q;   /* whole numbers of the start's bias scale */
    qk_candidate *winner;
    double *before[2]; /* by qk_set: the error of the start */
    double *change[2]; /* of that, by what is held */
} qk_holding;

qk_status qk_holding_new(qk_holding *h, const qk_quantized_layer *start, bool bias_free, int64_t rows, int64_t inputs,
                         int32_t *weight_q);
void qk_holding_destroy(qk_holding *h);
/* The start's bias, on its grid. */
int32_t qk_start_bias_q(const qk_quantized_layer *start, int64_t row);

typedef struct {
    qk_problem *problem;
    const qk_batch *batch;
    const qk_quantized_layer *start;
    bool bias_free;
    int max_sweeps;
    qk_holding *holding;
    float *q;          /* (lines, K) */
    double *change[2]; /* (lines) by qk_set: of the whole error, with the mean */
    double *error[2];  /* (lines): of the start, the centred part */
    int32_t *bias_q;   /* (lines) */
} qk_evaluation;

/* Memory for batches of at most `lines`. QK_E_NOMEM: destroy it. */
qk_status qk_evaluation_new(qk_evaluation *e, int64_t lines, int64_t inputs);
void qk_evaluation_destroy(qk_evaluation *e);

/* The outputs that are tried from now on; measures their start. */
qk_status qk_evaluation_begin(qk_evaluation *e, const qk_batch *batch);
/* Tries one candidate, of the damping that the problem has; outputs that it makes better take it. *gain: the change of
 * the held-out error of all that it makes better than the start. */
qk_status qk_evaluation_run(qk_evaluation *e, qk_candidate candidate, double *gain);

#endif
