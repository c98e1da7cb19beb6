/* From a batch to the sums of a layer: chosen positions, by set and phase, become rows of panels. */
#ifndef QK_ROW_FEED_H
#define QK_ROW_FEED_H

#include "moments/layer.h"

/* A batch on its way into the sums. */
typedef struct {
    const qk_extent *e;
    const qk_tensor *x, *y; /* y NULL: the layer has no target */
    qk_pool *pool;
} qk_fed_batch;

/* Adds the rows that the layer chooses of the batch. Panels are there and hold what x is. QK_E_NOMEM, and the errors of
 * sums. */
qk_status qk_feed_rows(qk_layer *layer, const qk_fed_batch *b);

#endif
