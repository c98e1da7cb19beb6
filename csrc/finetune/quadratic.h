/* A layer's error as a quadratic function of its weight, taken from moments (docs/numerics.md). */
#ifndef QK_QUADRATIC_H
#define QK_QUADRATIC_H

#include "qk.h"

/* Moments of one set, per row of the data; shapes as qk_layer_moments gives them. */
typedef struct {
    int64_t groups, inputs, outputs; /* K, O per group */
    double *gram, *cross, *mean_x, *mean_y, *power;
} qk_quadratic;

/* Allocates and fills; with_target as the layer was made. QK_E_NO_ROWS, QK_E_NONFINITE. */
qk_status qk_quadratic_init(qk_quadratic *q, const qk_layer *layer, qk_set set, bool with_target);
void qk_quadratic_destroy(qk_quadratic *q);

/* With the best bias put in, the error depends on centred moments alone: G - mu mu', C - m mu'. */
void qk_quadratic_centre(qk_quadratic *q);
/* With the bias b (groups * O) fixed: C becomes C - b mu'. */
void qk_quadratic_fix_bias(qk_quadratic *q, const float *bias);

/* Rows of work per task: fixed, so that no result depends on the number of threads. */
enum { QK_ROW_BLOCK = 32 };

/* E (w x + b - y)^2 of `count` outputs starting at output `row` (a global row, all in one group), on moments that are
 * neither centred nor fixed: error[i] = w'Gw - 2 w'c + 2 b w'mu - 2 b m + b^2 + t. scratch (count, K). */
void qk_output_error(const qk_quadratic *q, int64_t row, int64_t count, const double *w, const double *bias,
                     double *scratch, double *error);

#endif
