/* The samples of a layer, kept for the gradient loops: their memory stays with the caller. */
#ifndef QK_TRAINING_DATA_H
#define QK_TRAINING_DATA_H

#include "ops/panel.h"
#include "qk.h"

struct qk_training_data {
    qk_geometry geometry;
    qk_output_stage stage;
    int holdout;
    int64_t count, room;        /* samples */
    qk_tensor *x, *x_float, *y; /* (room), each one sample; of x_float data may be NULL */
    qk_extent extent;           /* of one sample; all samples have one shape */
};

/* Whether there is neither NaN nor Inf in the samples. An activation could hide them from the loss. */
bool qk_samples_are_finite(const qk_training_data *data);
/* Whether a sample judges instead of being trained on. */
bool qk_is_held_out(const qk_training_data *data, int64_t sample);
int64_t qk_channels_per_group(const qk_training_data *data);

/* The positions of a sample cut into pieces of `size`, the last maybe fewer. */
typedef struct {
    int64_t size, count;
    qk_row_table *tables; /* (count) */
} qk_pieces;
qk_status qk_pieces_init(qk_pieces *pieces, const qk_training_data *data, int64_t size);
void qk_pieces_destroy(qk_pieces *pieces);

/* Input lines of group `group` of one piece of a sample x, from column `column` of panel (K, ld) on; where there is
 * none, of bytes (qk_panel_fill_job). */
typedef struct {
    const qk_row_table *piece;
    int64_t group;
    float *panel;
    int64_t ld, column;
    uint8_t *bytes;
} qk_piece_fill;
void qk_fill_piece(const qk_training_data *data, qk_tensor x, const qk_piece_fill *to);

/* What a task works on: outputs output .. output + outputs - 1 of a group; samples x[first] .. x[last - 1], or where
 * which is given x[which[first]] ..; of each `count` positions from `position` on. */
typedef struct {
    int64_t group, output, outputs;
    const qk_tensor *x;
    const int64_t *which;
    int64_t first, last, position, count;
} qk_part;

#endif
