/* The sums of a layer on a device: rows are cut from a batch there and added there, and what came together is added to
 * the layer's own sums when it is flushed. Of 8-bit data the sums are exact, as on the processor: its integers are
 * multiplied in float32, 16 products at a time, which hold below 2^24, and added in float64. */
#ifndef QK_DEVICE_MOMENTS_H
#define QK_DEVICE_MOMENTS_H

#include "device/device.h"
#include "moments/panel_sums.h"

/* One set. */
typedef struct {
    qk_buffer x, y;         /* panels as qk_sums has them, float32; 8-bit data without its zero point and scale */
    qk_buffer gram, cross;  /* float64 sums: (groups, K, K), lower triangle; (groups, O, K) */
    qk_buffer sum_x, sum_y; /* (groups * K, 2), (groups * O, 2): of values and of their squares */
} qk_device_set;

typedef struct {
    qk_device *device; /* the caller's; NULL: the processor does it */
    bool active;       /* by what the first data decided, too */
    bool refused;      /* it had too little memory, and the processor went on */
    qk_device_set sets[2];
    qk_buffer x, y;                 /* the batch */
    qk_buffer x_offsets, y_offsets; /* of the rows that are cut, as qk_row_table has them */
} qk_device_moments;

/* A batch as it lies in memory; y NULL: without target. */
typedef struct {
    const qk_tensor *x, *y;
} qk_device_batch;

/* Makes room for the layer's sums and for a batch, and copies the batch. The device is taken. */
qk_status qk_device_moments_begin(qk_layer *layer, qk_device_batch batch);
/* Cuts the rows that wait in the tables of a set into its panels, from column s->used on. */
void qk_device_moments_cut(qk_layer *layer, const qk_sums *s, qk_device_batch batch, const qk_extent *e);
/* Adds the columns of panels that are used to the sums. */
void qk_device_moments_add(const qk_layer *layer, const qk_sums *s);
/* Moves the sums of the device to those of the layer. QK_E_NOMEM, and what devices give. */
qk_status qk_device_moments_collect(qk_layer *layer);
/* Gives all memory of the device back, which is taken. */
void qk_device_moments_leave(qk_layer *layer);

#endif
