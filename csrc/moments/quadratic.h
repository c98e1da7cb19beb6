/* A layer's error as a quadratic function of its weight, taken from moments (docs/numerics.md). */
#ifndef QK_QUADRATIC_H
#define QK_QUADRATIC_H

#include "qk.h"

/* Moments of one set, per row of the data; shapes as qk_layer_moments gives them. */
typedef struct {
    int64_t groups, inputs, outputs; /* K, O per group */
    double *gram, *cross, *mean_x, *mean_y, *power;
} qk_quadratic;

/* Beyond it data is QK_E_TOO_LARGE: candidates are sought in float32. */
#define QK_LARGEST_MOMENT 1e36

/* Allocates it, filled with zeros. QK_E_NOMEM. */
qk_status qk_quadratic_new(qk_quadratic *q, int64_t groups, int64_t inputs, int64_t outputs);
/* Allocates and fills; with_target as the layer was made. QK_E_NO_ROWS, and as below. */
qk_status qk_quadratic_init(qk_quadratic *q, const qk_layer *layer, qk_set set, bool with_target);
/* QK_E_NONFINITE, QK_E_TOO_LARGE. */
qk_status qk_quadratic_check(const qk_quadratic *q, bool with_target);
void qk_quadratic_destroy(qk_quadratic *q);
/* QK_E_NOMEM. */
qk_status qk_quadratic_copy(qk_quadratic *q, const qk_quadratic *from);
/* Fills the moments that a layer without target leaves alone, for y = W x: C = W G, m = W mu, t = diag(W G W').
 * weight (groups * O, K). Inside of qk_blas_enter. QK_E_NOMEM. */
qk_status qk_quadratic_aim(qk_quadratic *q, const float *weight);

/* Centred moments: G - mu mu', C - m mu', t - m^2. They are what is left with the best bias. */
void qk_quadratic_centre(qk_quadratic *q);
/* Gram and cross moments of the centred `q` with the bias b (groups * O) fixed: G + mu mu', C + (m - b) mu'. */
void qk_quadratic_fix_bias(qk_quadratic *q, const float *bias);

/* The unit of parallel work: some outputs of one group. Fixed, so that no result depends on the number of threads. */
typedef struct {
    int64_t group, first, count; /* first: a global row */
} qk_row_block;
enum { QK_ROW_BLOCK = 32 };
/* size: outputs in a block, at most. */
int64_t qk_row_blocks(const qk_quadratic *q, int64_t size);
qk_row_block qk_row_block_at(const qk_quadratic *q, int64_t size, int64_t index);

/* E (w x + b - y)^2 of a block's outputs, from centred moments: w'Gw - 2 w'c + t + (b + w'mu - m)^2. w (count, K),
 * bias and error by global row, scratch (count, K). */
void qk_output_error(const qk_quadratic *q, qk_row_block block, const double *w, const double *bias, double *scratch,
                     double *error);

#endif
