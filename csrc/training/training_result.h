/* The integers that are the result: for each output the best that were offered, the start's to begin with. */
#ifndef QK_TRAINING_RESULT_H
#define QK_TRAINING_RESULT_H

#include "training/judge.h"
#include "training/variables.h"

typedef struct {
    const qk_training_problem *problem;
    qk_judge *judge;
    qk_float_layer *layer;       /* what is judged */
    qk_gradient_result *best;    /* the caller's */
    bool *took;                  /* (rows): whether the best is no longer the start */
    double *best_loss, *offered; /* (rows): judged losses of the best, and of what is offered */
    int32_t *weight_q, *bias_q;  /* (rows, K), (rows): what the steps led to */
} qk_training_result;

/* qk_training_result_destroy after a failure, too. */
qk_status qk_training_result_init(qk_training_result *r, qk_judge *judge, qk_float_layer *layer,
                                  qk_gradient_result *best);
void qk_training_result_destroy(qk_training_result *r);
/* Errors of the start, as which the layer must compute; and over the fitted samples, added: input_power (groups * K),
 * mean square of each input; slope_power (rows), mean square of the stage's derivative. QK_E_TOO_LARGE. */
qk_status qk_judge_start(qk_training_result *r, double *input_power, double *slope_power);
/* The better of the start and of what the caller offers, output by output. */
void qk_offer_first(qk_training_result *r);
/* What the variables round to, where it is better still. */
qk_status qk_finish(qk_training_result *r, const qk_variables *v);

#endif
