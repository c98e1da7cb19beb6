#ifndef QK_TRAINING_RESULT_H
#define QK_TRAINING_RESULT_H

#include "training/trainer.h"

/* What is added up while all samples of a set are judged; entries that are NULL are not. */
typedef struct {
    double *row_loss;     /* (rows) */
    double *mean_power;   /* (groups * K): mean square of each input */
    double *mean_error;   /* (rows): of each output, times the stage's derivative */
    double *slope_power;  /* (rows): mean square of that */
    double *target_power; /* mean square of the target */
} qk_summary;
/* The loss over all samples of a set; NaN without any. Adds to the entries of `sums`. */
double qk_evaluate(qk_trainer *t, qk_set set, qk_summary sums);
/* Errors of the start, and from them the unit of each output. */
qk_status qk_judge_start(qk_trainer *t, qk_gradient_result *result);
/* The better of the start and of what the caller offers, output by output. */
void qk_first_result(qk_trainer *t, qk_gradient_result *result);
/* What the variables round to, where it is better still. */
qk_status qk_finish(qk_trainer *t, qk_gradient_result *result);

#endif
