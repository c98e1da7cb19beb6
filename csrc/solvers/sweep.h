/* Sweeps over the inputs of a batch, strip by strip. Within a strip a solver takes one input after the other, for
 * QK_LANES outputs at a time; after it one product brings all other inputs up to date, for as many outputs as a piece
 * has. So the matrix is read once per sweep and piece, and the order is that of the inputs. */
#ifndef QK_SWEEP_H
#define QK_SWEEP_H

#include "solvers/integer_problem.h"
#include "solvers/integer_rows.h"

enum {
    QK_STRIP = 256,  /* inputs of a strip */
    QK_COLUMNS = 512 /* inputs outside of it that a task brings up to date */
};

typedef struct {
    const qk_batch *batch;
    qk_run *run;
    const float *matrix; /* (groups, K, K) */
    float *q;            /* (lines, K) whole numbers */
    float *lines;        /* (lines, K): what is kept up to date */
    float *step;    /* (lines, QK_STRIP): what the last strip changed of the weights; of descent the changes alone, */
    int32_t *which; /* (lines, QK_STRIP): of these inputs */
    float *scratch; /* (threads, qk_sweep_scratch) */
    int32_t *moves; /* (lines): how many of a strip's inputs changed */
    float *dense;   /* (threads, QK_PIECE, QK_STRIP) */
    bool *resting;  /* (blocks): no input changed in a whole sweep */
    bool *moved;    /* (blocks): one did in this sweep */
} qk_sweep;

/* Memory for batches of at most `blocks` blocks; matrix, q and lines stay the caller's. QK_E_NOMEM: destroy it. */
qk_status qk_sweep_new(qk_sweep *sweep, qk_run *run, int64_t blocks, int64_t inputs, int64_t scales);
void qk_sweep_destroy(qk_sweep *sweep);

/* The lanes of a block and strip, in a worker's scratch. */
typedef struct {
    qk_lane_arrays arrays;
    float *line, *step, *target; /* (QK_STRIP, QK_LANES) */
} qk_strip_lanes;
qk_strip_lanes qk_strip_lanes_of(const qk_sweep *sweep, int worker);
/* Inputs from .. of a strip that begins with `first`, as the kernels take them. */
qk_lanes qk_kernel_lanes(const qk_sweep *sweep, const qk_strip_lanes *lanes, int64_t first, int64_t from);

#endif
