/* The sizes of one batch as a layer's geometry sees it: where a row's inputs and outputs lie in memory. */
#ifndef QK_EXTENT_H
#define QK_EXTENT_H

#include "qk.h"

typedef struct {
    int64_t samples;   /* of this batch */
    int64_t positions; /* rows of one sample */
    int64_t channels;  /* of x; input k of group g is channel g * channels / groups + k / taps, tap k % taps */
    int64_t taps;      /* prod(kernel) */
    int64_t in[QK_MAX_SPATIAL], out[QK_MAX_SPATIAL];
    int64_t pad[QK_MAX_SPATIAL]; /* at the beginning; of the output, for ConvTranspose */
    /* strides in elements */
    int64_t x_sample, x_channel, y_sample, y_output, y_position;
} qk_extent;

/* QK_E_ARG unless every size can be: at least one group, input and output, kernels and strides of at least 1, …, none
 * above INT32_MAX. QK_E_NOMEM where the weight is beyond any memory. */
qk_status qk_geometry_check(const qk_geometry *g);

/* y may be NULL. QK_E_SHAPE when the arrays do not fit the geometry or each other, QK_E_ARG on a zero point far from
 * any byte. */
qk_status qk_extent_of(const qk_geometry *g, const qk_tensor *x, const qk_tensor *y, qk_extent *e);

#endif
