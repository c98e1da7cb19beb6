/* Inside of qk_layer: the panels that collect rows and the sums they are added to. */
#ifndef QK_LAYER_H
#define QK_LAYER_H

#include "ops/panel.h"
#include "qk.h"

typedef struct {
    float *x, *y; /* panels (groups * K, capacity), (groups * O, capacity) */
    int64_t used; /* columns of the panels that wait to be added */
    int64_t rows; /* added so far */
    qk_row_table x_rows, y_rows;
    /* Sums over rows, per group: (K,K) both triangles, (O,K), (K), (O), (O). */
    double *gram, *cross, *sum_x, *sum_y, *power;
} qk_sums;

struct qk_layer {
    qk_geometry geometry;
    qk_row_choice choice;
    bool with_target;
    int64_t next_sample;
    int64_t capacity; /* rows of a panel */
    qk_sums sets[2];  /* indexed by qk_set */
};

/* Adds the waiting columns of a set's panels to its sums. (gram.c) */
qk_status qk_layer_add_panel(qk_layer *layer, qk_set set, qk_pool *pool);

#endif
