/* The reconstruction loss of a layer on some samples, and its gradient by the weight and the bias.
 *
 * loss = mean over samples and positions of the sum over outputs of (stage(w x + b) - f(y))^2. No gradient by x is
 * needed, as layers are trained one by one. */
#ifndef QK_RECONSTRUCTION_H
#define QK_RECONSTRUCTION_H

#include "loss/training_data.h"
#include "loss/winograd.h"
#include "ops/output_stage.h"

typedef struct {
    const qk_training_data *data;
    qk_pool *pool;
    int64_t chunk;         /* columns of a unit of work, by the size of a call: no result depends on threads */
    qk_pieces pieces;      /* of samples with more positions than that */
    qk_winograd_plan plan; /* for calls that want the gradient */
    qk_winograd winograd;
    int64_t rows;                /* output channels of all groups */
    int64_t stride, first_piece; /* a call looks at each stride-th piece of its samples, from that one on */
    const qk_tensor *inputs;     /* of the samples of a call, in place of the data's own; NULL: those */
    float *panels;               /* (threads, K + 2 O, columns of a unit) */
    float *outputs;              /* softmax: (threads, 4, rows, positions) */
    float *gradient;             /* (units, rows, K) */
    float *slope;                /* (units, rows): of the bias */
    double *loss;                /* (units, rows) */
    double *power;               /* (units, groups, K): sums of squares of the inputs */
    double *target_power;        /* (units, rows) */
    double *slope_power;         /* (units, rows): of the stage */
} qk_reconstruction;

/* A call looks at all pieces until `stride` is set. most_samples: of a call; most_trained: of a call that wants the
 * gradient, or 0. */
qk_status qk_reconstruction_init(qk_reconstruction *r, const qk_training_data *data, int64_t most_samples,
                                 int64_t most_trained, qk_pool *pool);
void qk_reconstruction_destroy(qk_reconstruction *r);

/* What is wanted of some samples: entries that are NULL are not computed. */
typedef struct {
    double loss;
    double *row_loss;     /* (rows): the part of each output */
    float *gradient;      /* (rows, K) of the loss by the weight */
    float *slope;         /* (rows) of the loss by the bias */
    double *mean_power;   /* (groups * K): mean square of each input */
    double *target_power; /* mean over samples and positions of the sum over outputs of f(y)^2 */
    double *slope_power;  /* (rows): mean square of the stage's derivative */
} qk_reconstruction_result;

/* weight (rows, K), bias (rows) or NULL. samples: indices into the data, `count` of them. */
void qk_reconstruct(qk_reconstruction *r, const float *weight, const float *bias, const int64_t *samples, int64_t count,
                    qk_reconstruction_result *result);

/* One group on one piece of a sample, n columns: the caller's memory. */
typedef struct {
    int64_t group, piece;
    const float *panel;                  /* (K, n): the inputs, from qk_fill_piece */
    float *error;                        /* (O, n): weight x + bias - y */
    float *target;                       /* (n): scratch */
    double *squares;                     /* (O): the sums of squares of the errors are added, */
    double *target_sum, *target_squares; /* (O): and the sums of y and y^2 */
} qk_piece_errors;
void qk_reconstruct_piece(const qk_reconstruction *r, const float *weight, const float *bias, int64_t sample,
                          const qk_piece_errors *to);

#endif
