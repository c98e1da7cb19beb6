/* Inside of qk_layer: what collects a layer's rows, set by set and phase by phase. */
#ifndef QK_LAYER_H
#define QK_LAYER_H

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
    bool begun;       /* by the first feed, which decides on the next two */
    bool as_bytes;
    qk_affine affine; /* of bytes */
};

#endif
