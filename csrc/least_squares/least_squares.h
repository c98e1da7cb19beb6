#ifndef QK_LEAST_SQUARES_H
#define QK_LEAST_SQUARES_H

#include "moments/quadratic.h"

/* qk_least_squares on centred moments, by qk_set. Both may be the same: then nothing is held out. */
qk_status qk_least_squares_on(const qk_quadratic moments[2], const qk_quantized_layer *start,
                              const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result);

#endif
