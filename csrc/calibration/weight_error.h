/* What a change of a weight does to the layer's output: E (d x)^2 for the change d of one output's weights. */
#ifndef QK_WEIGHT_ERROR_H
#define QK_WEIGHT_ERROR_H

#include "qk.h"

/* From moments, or from the rows that the layer keeps; with neither, as if inputs were independent and of one size. */
typedef struct {
    int64_t groups, inputs;
    float *gram; /* (groups, K, K): damped, centred where a bias takes up the mean */
    float *rows; /* (groups, K, row_count): centred likewise */
    int64_t row_count;
    double *damping; /* (groups): of rows, times |d|^2; gram has it */
} qk_weight_error;

/* bias_free: without the mean of d x. QK_E_NOMEM, QK_E_NO_ROWS, QK_E_NONFINITE, QK_E_TOO_LARGE; nothing is left
 * allocated then. */
qk_status qk_weight_error_init(qk_weight_error *e, const qk_layer *layer, bool bias_free);
void qk_weight_error_destroy(qk_weight_error *e);

/* to[i * stride] becomes the error of line i of d (count, K), of one group. scratch (count, qk_weight_error_width). */
int64_t qk_weight_error_width(const qk_weight_error *e);
void qk_weight_errors(const qk_weight_error *e, int64_t group, const float *d, int64_t count, float *scratch,
                      double *to, int64_t stride);

#endif
