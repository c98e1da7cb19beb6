/* What stays as it is while a layer is trained: its samples, the start, the options; and the layer as it computes. */
#ifndef QK_TRAINING_PROBLEM_H
#define QK_TRAINING_PROBLEM_H

#include "loss/training_data.h"
#include "qk.h"

typedef struct {
    const qk_training_data *data;
    const qk_quantized_layer *start;
    const qk_gradient_options *options;
    qk_pool *pool;
    int64_t rows, inputs, weights; /* output channels of all groups, K, rows * K */
    int64_t *samples[2], count[2]; /* indices into the data, by qk_set */
} qk_training_problem;

/* Derives all other fields from the first four, and checks these. qk_training_problem_destroy after a failure, too. */
qk_status qk_training_problem_init(qk_training_problem *p);
void qk_training_problem_destroy(qk_training_problem *p);

/* Whether the result has a bias of its own. */
static inline bool qk_trains_bias(const qk_training_problem *p) {
    return p->options->update_bias && p->start->bias && p->start->bias_scale;
}

static inline bool qk_is_cancelled(const qk_training_problem *p) {
    return p->options->cancelled && p->options->cancelled(p->options->user);
}

/* The layer as it computes at the moment: the variables set it in each step, integers where they are judged. */
typedef struct {
    float *weight; /* (rows, K) */
    float *bias;   /* (rows) */
} qk_float_layer;

/* The layer computes with the start's integers and bias. qk_float_layer_destroy after a failure, too. */
qk_status qk_float_layer_init(qk_float_layer *layer, const qk_training_problem *p);
void qk_float_layer_destroy(qk_float_layer *layer);
/* The layer computes with these integers from now on. bias_q NULL: with the start's bias. */
void qk_use_integers(qk_float_layer *layer, const qk_training_problem *p, const int32_t *weight_q,
                     const int32_t *bias_q);

#endif
