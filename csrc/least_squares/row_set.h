/* The rows of a layer as matrices: what stands in for moments where rows are fewer than inputs. */
#ifndef QK_ROW_SET_H
#define QK_ROW_SET_H

#include "base/run.h"
#include "moments/layer.h"

/* Centred and divided by the square root of their number, so that x x' and y x' are the centred moments. With a fixed
 * bias one more row stands behind them, of the means: it adds the error of the mean. */
typedef struct {
    int64_t groups, inputs, outputs; /* K, O per group */
    int64_t rows, width;             /* without and with that row */
    float *x, *y;                    /* (groups * K, width), (groups * O, width) */
    double *mean_x, *mean_y, *power; /* (groups * K), (groups * O), (groups * O): centred */
} qk_row_set;

/* Where they come from: a layer that keeps its rows. fixes_bias: with that row, for `bias` (groups * O), NULL: 0. A
 * layer without target has that of y = weight x. */
typedef struct {
    const qk_layer *layer;
    qk_set set;
    bool fixes_bias;
    const float *weight, *bias;
} qk_row_source;
/* Inside of qk_blas_enter. QK_E_NOMEM, QK_E_NO_ROWS, QK_E_NONFINITE, QK_E_TOO_LARGE, QK_E_CANCELLED: destroy it. */
qk_status qk_row_set_new(qk_row_set *s, const qk_row_source *of, qk_run *run);
void qk_row_set_destroy(qk_row_set *s);

#endif
