/* Inside of qk_layer: what collects a layer's rows, set by set and phase by phase. */
#ifndef QK_LAYER_H
#define QK_LAYER_H

#include "moments/device_moments.h"
#include "moments/panel_sums.h"
#include "ops/phases.h"
#include "qk.h"

struct qk_layer {
    qk_geometry geometry;
    qk_row_choice choice;
    bool with_target;
    int64_t next_sample;
    qk_status failed; /* a feed that did, in the middle of a batch */
    qk_phases phases;
    qk_sums *sets[2]; /* (phases), indexed by qk_set; NULL: there is no such set */
    bool begun;       /* by the first feed, which decides on the next three */
    bool keeps_rows;
    bool as_bytes;
    qk_affine affine; /* of bytes */
    qk_device_moments on_device;
};

/* Phases of a set; none where there is no such set. */
static inline int64_t qk_phase_count(const qk_layer *layer, int set) {
    return layer->sets[set] ? layer->phases.count : 0;
}
/* Rows of a panel that is added when it is full. */
int64_t qk_panel_capacity(const qk_layer *layer, const qk_sums *s);
/* A panel of so many rows takes over the rows of the old one, which stays as it was after a failure. */
qk_status qk_panel_resize(qk_sums *s, const qk_layer *layer, int64_t capacity);

#endif
