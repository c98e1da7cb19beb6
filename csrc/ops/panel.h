/* A panel: chosen rows of a batch, transposed. panel (channels * taps, capacity) holds in line c * taps + tap the
 * value of every row's tap, so that a Gram matrix is panel * panel'. (im2col of some positions, of 8-bit tensors
 * dequantized or as bytes.) */
#ifndef QK_PANEL_H
#define QK_PANEL_H

#include "ops/extent.h"

/* The rows to be cut from one tensor, waiting in a table. */
typedef struct {
    int64_t taps, capacity;
    const int64_t *which; /* (taps): of the kernel's; NULL: all. The caller's memory */
    int64_t count;        /* rows waiting */
    int32_t *offsets; /* (taps, capacity): of the tap in channel 0, relative to the tensor; padding: -1, sealed any */
    int32_t *runs;    /* (taps, capacity): from a multiple of QK_PANEL_BLOCK, how many offsets rise by 1 each; or 0 */
    int32_t *padding; /* (taps, capacity): the rows whose tap is padding */
    int64_t *padding_count; /* (taps) */
    int32_t *coordinates;   /* scratch (QK_MAX_SPATIAL, capacity): the input that tap 0 of a row sees */
    int32_t *phases;        /* scratch (QK_MAX_SPATIAL, capacity): of a ConvTranspose's rows */
} qk_row_table;
enum { QK_PANEL_BLOCK = 16 };

qk_status qk_row_table_init(qk_row_table *t, int64_t taps, int64_t capacity);
void qk_row_table_destroy(qk_row_table *t);
/* Append n output positions of sample `sample`: their inputs (x) or their outputs (y). */
void qk_row_table_add_inputs(qk_row_table *t, const qk_geometry *g, const qk_extent *e, int64_t sample,
                             const int64_t *positions, int64_t n);
void qk_row_table_add_outputs(qk_row_table *t, const qk_extent *e, int64_t sample, const int64_t *positions, int64_t n);
/* Finds runs and padding; call after the last add, before filling. */
void qk_row_table_seal(qk_row_table *t);

/* Writes the table's rows of channels c0 .. c1 - 1 into columns column .. column + count - 1 of the panel. */
typedef struct {
    float *panel;
    int64_t capacity, column;
    const qk_tensor *tensor;
    int64_t channel_stride; /* of the tensor, in elements */
    const qk_row_table *rows;
    uint8_t *bytes; /* where there is no panel: the same as bytes (qk_bytes_of), padding is their zero point */
} qk_panel_fill_job;
void qk_panel_fill(const qk_panel_fill_job *job, int64_t c0, int64_t c1);

/* What the bytes of a panel stand for: int8 is written 128 higher, as uint8. false: the tensor is float, or its zero
 * point no byte. */
bool qk_bytes_of(const qk_tensor *t, qk_affine *affine);

#endif
