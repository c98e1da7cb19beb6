/* Loss and gradient of a quadratic layer, from each sample's Gram matrix.
 *
 * Where nothing stands between a layer's output and the loss, the loss is quadratic in the weights. With R the errors
 * of a sample's outputs at reference weights, X its inputs and D the way of the weights from there,
 *
 *   the sum of squares |R + D X|^2 is |R|^2 + sum of D * (V + 2 C), and half its gradient V + C,
 *   with V = D X X' and C = R X',
 *
 * whatever the number of positions. The reference is near, about a step of the grid: little is lost in float32. */
#ifndef QK_GRAM_LOSS_H
#define QK_GRAM_LOSS_H

#include "loss/sample_grams.h"

/* Samples that are trained on, samples of a step, steps; whether qk_reconstruct takes these by Winograd's filtering;
 * whether inputs are bytes (qk_bytes_of). */
typedef struct {
    int64_t samples, batch, steps;
    bool winograd, as_bytes;
} qk_gram_loss_use;

/* Whether all matrices fit into 96 MiB, and to make them and take the steps with them costs clearly less than the steps
 * with qk_reconstruct. */
bool qk_gram_loss_pays(const qk_geometry *geometry, int64_t positions, qk_gram_loss_use use);

typedef struct {
    const qk_sample_grams *of;
    float *moved;   /* (rows, inputs): D */
    double *change; /* (parts, rows): sum of D * (V + 2 C) over a part of the inputs */
    float *scratch; /* (threads, scratch_size) */
    int64_t scratch_size;
    int64_t parts, lines, bundle; /* of a step: tasks of a group, inputs of a part; groups of a task */
} qk_gram_loss;

/* A step has at most `batch` samples. The bias moves only if `of` is with it. `of` must outlive it.
 * qk_gram_loss_destroy after a failure, too. */
qk_status qk_gram_loss_init(qk_gram_loss *g, const qk_sample_grams *of, int64_t batch);
void qk_gram_loss_destroy(qk_gram_loss *g);

/* What qk_reconstruct finds on samples that were added: the loss, the gradient, and where they are not NULL row_loss
 * and, if the bias moves, slope. Nothing else is looked at. */
void qk_gram_loss_find(qk_gram_loss *g, const float *weight, const float *bias, const int64_t *samples, int64_t count,
                       qk_reconstruction_result *result);

#endif
