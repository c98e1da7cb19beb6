#ifndef QK_PANEL_SUMS_H
#define QK_PANEL_SUMS_H

#include "ops/panel.h"
#include "qk.h"

/* It holds the sums of the rows of one phase, with K' = C / groups * taps inputs per group. */
typedef struct {
    int64_t taps;            /* of the kernel, that the phase sees */
    int64_t inputs;          /* K' */
    int64_t capacity;        /* rows of a panel */
    int64_t offered, stride; /* of kept rows: how many there were so far; one in `stride` of them is kept */
    int64_t *which;          /* (taps): the kernel's taps that are the phase's; NULL: all */
    float *x, *y;            /* panels (groups * K', capacity), (groups * O, capacity); made by the first feed */
    uint8_t *bytes;          /* in place of x, of 8-bit data */
    int64_t used;            /* columns of the panels that wait to be added */
    int64_t rows;            /* added so far */
    int64_t device_rows;     /* those of them whose sums are still on a device */
    qk_row_table x_rows, y_rows;
    /* Sums over rows, per group: (K',K') lower triangle, (O,K'), (K'), (O), (O). Of bytes q with zero point z they are
     * q (q - 128)', y (q - z)' and q, where that is of integers exact. */
    double *gram, *cross, *sum_x, *sum_y, *power; /* NULL where nothing was added yet */
} qk_sums;

/* Makes sums of zeros, where there are none. QK_E_NOMEM. */
qk_status qk_sums_allocate(qk_sums *s, const qk_layer *layer);
/* Adds the waiting columns of panels to their sums. */
qk_status qk_layer_add_panel(const qk_layer *layer, qk_sums *sums, qk_pool *pool);

#endif
