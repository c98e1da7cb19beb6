/* The loss of a layer over all samples of a set, from which integers are chosen. */
#ifndef QK_JUDGE_H
#define QK_JUDGE_H

#include "loss/dataset_moments.h"
#include "loss/device_loss.h"
#include "loss/reconstruction.h"
#include "loss/sample_grams.h"
#include "training/training_problem.h"

enum { QK_JUDGED_TOGETHER = 32 }; /* samples */

typedef struct {
    const qk_training_problem *problem;
    qk_reconstruction all;
    qk_quadratic moments[2]; /* by qk_set, where they give the loss */
    /* What is found at a time: */
    double *row_loss, *row_slope; /* (rows) */
    float *slope;                 /* (rows) */
    double *mean_power;           /* (groups * K) */
    double *real;                 /* (threads, 2, QK_ROW_BLOCK, K): scratch of the moments */
    qk_device_loss *device;       /* it looks at the samples; NULL: the processor does. The caller's */
    qk_status failed;             /* the first time that the device did, after which no loss means anything */
} qk_judge;

/* The judge looks at the samples themselves. qk_judge_destroy after a failure, too. */
qk_status qk_judge_init(qk_judge *j, const qk_training_problem *p);
void qk_judge_destroy(qk_judge *j);
/* From now on moments give the loss where they can. grams: of all fitted samples, NULL: there are none. */
qk_status qk_judge_use_moments(qk_judge *j, const qk_sample_grams *grams);

/* What is added up while all samples of a set are judged; entries that are NULL are not. */
typedef struct {
    double *row_loss;     /* (rows) */
    double *mean_power;   /* (groups * K): mean square of each input */
    double *mean_error;   /* (rows): of each output, times the stage's derivative */
    double *slope_power;  /* (rows): mean square of that */
    double *target_power; /* mean square of the target */
} qk_summary;
/* The loss over all samples of a set; NaN without any. Adds to the entries of `sums`. */
double qk_judge_loss(qk_judge *j, const qk_float_layer *layer, qk_set set, qk_summary sums);

/* Held-out samples judge; with few samples those that were trained on. */
static inline qk_set qk_judging_set(const qk_training_problem *p) {
    return p->count[QK_HELD_OUT] ? QK_HELD_OUT : QK_FITTED;
}

#endif
