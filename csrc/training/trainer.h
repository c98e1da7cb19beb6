/* A layer in training: its variables, and what the parts of the gradient loops share. */
#ifndef QK_TRAINER_H
#define QK_TRAINER_H

#include "kernels/kernels.h"
#include "loss/dataset_moments.h"
#include "loss/gram_loss.h"
#include "loss/qdrop.h"
#include "loss/reconstruction.h"

enum { QK_EVALUATED = 32 }; /* samples at a time, where all are judged */

typedef struct {
    const qk_training_data *data;
    const qk_quantized_layer *start;
    const qk_gradient_options *options;
    qk_pool *pool;
    int64_t rows, inputs, weights;
    int64_t *samples[2], count[2]; /* by qk_set */
    int64_t *order, drawn;         /* the fitted samples as they take their turn; how many have */
    qk_qdrop mixing;               /* of drop_ratio below 1 */
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

/* Of data, start, options and pool all the rest. qk_trainer_destroy after a failure, too. */
qk_status qk_trainer_init(qk_trainer *t);
void qk_trainer_destroy(qk_trainer *t);

#endif
