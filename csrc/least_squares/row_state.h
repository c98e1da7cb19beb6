/* What the parts of the row form share: its state, a worker's scratch, the products with the rows. */
#ifndef QK_ROW_STATE_H
#define QK_ROW_STATE_H

#include "least_squares/row_factor.h"
#include "solvers/integer_problem.h"
#include "solvers/integer_rows.h"

enum {
    QK_ROW_CHUNK = 256, /* rows of a task */
    QK_ROW_FACTORS = 4,
};

typedef struct {
    qk_problem base;
    const qk_quantized_layer *start;
    bool bias_free;
    const qk_batch *batch;
    qk_row_set set[2];
    float *squares; /* (groups * K, QK_COLUMN_BLOCK): X_B' X_B of each block */
    double *trace;  /* (groups) */
    double *lam;    /* (groups) */
    double *gram;   /* (groups, width, width): X X' of the fitted set, once `round` is wanted */
    qk_row_factor factor[QK_ROW_FACTORS];
    int factors, next;           /* those that there are; the one that a new damping replaces */
    const qk_row_factor *damped; /* of the present damping */
    float *error[2];             /* (lines, width): r at the start */
    float *float_error;          /* (lines, width): r of the float weight, of the fitted set */
    float *present;              /* (lines, width): r of the integers at hand, of the fitted set */
    float *change;               /* (lines, K): of the weights, from the start */
    double *partial;             /* (lines, chunks): sums over rows */
    float *scratch;              /* (threads, scratch_size) */
    int64_t scratch_size;
    bool rounded; /* q is what `round` set */
} qk_row_state;

/* Tasks into which the rows of a set are cut. */
int64_t qk_row_chunks(const qk_row_state *p, int set);

/* to = weights X + from, of the lines of the batch. */
typedef struct {
    qk_row_state *p;
    int set;
    const float *weights; /* (lines, K), or (groups * O, K) where by_row */
    bool by_row;
    const float *from; /* (lines, width) that is added; NULL: - y */
    float *to;         /* (lines, width) */
} qk_row_product;

qk_status qk_row_errors(qk_row_state *p, qk_row_product job);

/* A worker's scratch, for a piece and a block of inputs. */
typedef struct {
    double *exact;                  /* (QK_PIECE, width): a */
    float *along;                   /* the same */
    float *target, *step;           /* (QK_PIECE, QK_COLUMN_BLOCK): targets or slopes; errors or changes */
    int32_t *which, *moves;         /* (QK_PIECE, QK_COLUMN_BLOCK), (QK_PIECE): which inputs changed, and how many */
    float *square;                  /* (QK_COLUMN_BLOCK, QK_COLUMN_BLOCK) */
    float *scale, *curvature;       /* (QK_COLUMN_BLOCK) */
    float *lanes, *moved, *carried; /* (QK_COLUMN_BLOCK, QK_LANES) */
    qk_lane_arrays arrays;
} qk_row_workspace;

/* Scales of an output. */
int64_t qk_row_scales(const qk_row_state *p);
int64_t qk_row_workspace_size(const qk_row_state *p);
qk_row_workspace qk_row_workspace_of(const qk_row_state *p, int worker);

/* The integers that are worked on, (lines, K). */
typedef struct {
    qk_row_state *p;
    float *q;
} qk_row_job;

void qk_row_set_to_start(const qk_row_state *p, float *q);
/* p->change = scale (q - q0). */
qk_status qk_row_changes(const qk_row_job *job);

#endif
