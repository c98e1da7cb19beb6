/* qk_train, for tests: with the way given in which steps find loss and gradient. */
#ifndef QK_TRAINING_LOOP_H
#define QK_TRAINING_LOOP_H

#include "training/step_loss.h"

qk_status qk_train_in_way(const qk_training_data *data, const qk_quantized_layer *start,
                          const qk_gradient_options *options, qk_pool *pool, qk_loss_way way,
                          qk_gradient_result *result);

#endif
