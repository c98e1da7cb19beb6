#ifndef QK_TRAINING_LOOP_H
#define QK_TRAINING_LOOP_H

#include "qk.h"

/* How a step finds loss and gradient, where they are quadratic: qk_train takes what is cheaper. */
typedef enum { QK_AS_IT_PAYS, QK_DIRECTLY, QK_BY_GRAMS } qk_loss_way;
qk_status qk_train_in_way(const qk_training_data *data, const qk_quantized_layer *start,
                          const qk_gradient_options *options, qk_pool *pool, qk_loss_way way,
                          qk_gradient_result *result);

#endif
