/* Inside of qk_layer: the panels that collect rows and the sums they are added to. */
#ifndef QK_LAYER_H
#define QK_LAYER_H

#include "ops/panel.h"
#include "ops/phases.h"
#include "qk.h"

/* Of the rows of one phase, with K' = C / groups * taps inputs per group. */
typedef struct {
    int64_t taps;     /* of the kernel, that the phase sees */
    int64_t inputs;   /* K' */
    int64_t capacity; /* rows of a panel */
    int64_t *which;   /* (taps): the kernel's taps that are the phase's; NULL: all */
    float *x, *y;     /* panels (groups * K', capacity), (groups * O, capacity); made by the first feed */
    uint8_t *bytes;   /* in place of x, of 8-bit data */
    int64_t used;     /* columns of the panels that wait to be added */
    int64_t rows;     /* added so far */
    qk_row_table x_rows, y_rows;
    /* Sums over rows, per group: (K',K') lower triangle, (O,K'), (K'), (O), (O). Of bytes q with zero point z they are
     * q (q - 128)', y (q - z)' and q, where that is of integers exact. */
    double *gram, *cross, *sum_x, *sum_y, *power;
} qk_sums;

struct qk_layer {
    qk_geometry geometry;
    qk_row_choice choice;
    bool with_target;
    int64_t next_sample;
    qk_status failed; /* a feed that did, in the middle of a batch */
    qk_phases phases;
    qk_sums *sets[2]; /* (phases), indexed by qk_set; NULL: there is no such set */
    bool begun;       /* by the first feed, which decides on the next two */
    bool as_bytes;
    qk_affine affine; /* of bytes */
};

/* Adds the waiting columns of panels to their sums. (gram.c) */
qk_status qk_layer_add_panel(const qk_layer *layer, qk_sums *sums, qk_pool *pool);

#endif
