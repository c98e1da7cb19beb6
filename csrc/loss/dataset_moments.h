/* The moments of all samples of a set: where the loss is quadratic in the weights they give it at once, and exactly,
 * for any weights. */
#ifndef QK_DATASET_MOMENTS_H
#define QK_DATASET_MOMENTS_H

#include "loss/training_data.h"
#include "moments/quadratic.h"

/* Nothing stands between output and loss, inputs are bytes, and the matrices take at most 64 MiB. */
bool qk_dataset_moments_apply(const qk_training_data *data);
/* Centred moments of `count` of the samples. qk_quadratic_destroy(q) after a failure, too. */
qk_status qk_dataset_moments_init(qk_quadratic *q, const qk_training_data *data, const int64_t *samples, int64_t count,
                                  qk_pool *pool);

#endif
