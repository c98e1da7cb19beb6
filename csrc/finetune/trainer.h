/* A layer in training: its variables, and what the parts of the gradient loops share. */
#ifndef QK_TRAINER_H
#define QK_TRAINER_H

#include "finetune/gram_loss.h"
#include "finetune/input_mixing.h"
#include "finetune/reconstruction.h"
#include "finetune/set_moments.h"
#include "kernels/kernels.h"

enum { QK_EVALUATED = 32 }; /* samples at a time, where all are judged */

typedef struct {
    const qk_training_data *data;
    const qk_quantized_layer *start;
    const qk_gradient_options *options;
    qk_pool *pool;
    int64_t rows, inputs, weights;
    int64_t *samples[2], count[2]; /* by qk_set */
    int64_t *order, drawn;         /* the fitted samples as they take their turn; how many have */
    qk_input_mixing mixing;        /* of drop_ratio below 1 */
    qk_reconstruction on, all;     /* of a step; of judging */
    bool by_grams;                 /* steps take loss and gradient from: */
    qk_sample_grams grams;
    qk_gram_loss gram_loss;
    qk_quadratic moments[2]; /* by qk_set, where they give the loss: of judging */
    qk_reconstruction_result found;
    float *weight, *variable, *base, *first, *second, *best, *sigmoid; /* (rows, K) */
    float *bias, *bias_first, *bias_second, *best_bias;                /* (rows) */
    int32_t *weight_q, *bias_q;                                        /* (rows, K), (rows): what the steps led to */
    float *per_unit;                                                   /* (rows): 1 / U */
    double *rounding;                                                  /* (rows): sum of the regulariser */
    double *row_loss, *row_slope, *row_offered;                        /* (rows): scratch */
    double *real;     /* scratch (threads, 2, QK_ROW_BLOCK, K) of moments */
    bool *took;       /* (rows): whether the result is no longer the start */
    double *row_best; /* (rows): judged loss of the result so far */
    qk_adam adam;
    float penalty, beta;
} qk_trainer;

static inline bool qk_mixes(const qk_trainer *t) { return t->options->drop_ratio < 1; }
static inline bool qk_trains_bias(const qk_trainer *t) {
    return t->options->update_bias && t->start->bias && t->start->bias_scale;
}

/* ---- trainer.c ---- */
/* Of data, start, options and pool all the rest. qk_trainer_destroy after a failure, too. */
qk_status qk_trainer_init(qk_trainer *t);
void qk_trainer_destroy(qk_trainer *t);

/* ---- gradient.c ---- */
/* How a step finds loss and gradient, where they are quadratic: qk_train takes what is cheaper. */
typedef enum { QK_AS_IT_PAYS, QK_DIRECTLY, QK_BY_GRAMS } qk_loss_way;
qk_status qk_train_in_way(const qk_training_data *data, const qk_quantized_layer *start,
                          const qk_gradient_options *options, qk_pool *pool, qk_loss_way way,
                          qk_gradient_result *result);

/* ---- training_result.c ---- */
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
