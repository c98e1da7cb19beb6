/* The way from a layer's output to its squared error: activation, quantization of the output. */
#ifndef QK_OUTPUT_STAGE_H
#define QK_OUTPUT_STAGE_H

#include "qk.h"

/* Whether the loss compares z with y as they are. */
bool qk_stage_is_plain(const qk_output_stage *s);

/* n values of output `row`. z becomes the error times the derivative of the stage, which is half the derivative of the
 * squared error; target becomes f(target). Adds the squares of that derivative to *slope_power; returns the sum of the
 * squared errors. */
double qk_stage_line(const qk_output_stage *s, int64_t row, float bias, float *z, float *target, size_t n,
                     double *slope_power);

/* Softmax over `length` values, `inner` apart, `outer` times. */
typedef struct {
    int64_t outer, length, inner;
} qk_softmax_shape;
/* Where softmax runs in the outputs (rows, positions) of a sample; y: the sample's target. */
qk_softmax_shape qk_softmax_shape_of(const qk_output_stage *s, const qk_geometry *g, const qk_tensor *y);
/* As qk_stage_line on all outputs of a sample: z, with bias, and target are (outer, length, inner). error becomes the
 * error of each value, slope_power (same shape) the sum of squares of the derivatives of all values by each z. */
void qk_stage_softmax(const qk_output_stage *s, qk_softmax_shape shape, float *z, float *target, float *error,
                      float *slope_power);

#endif
