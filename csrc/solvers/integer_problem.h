/* A layer whose integers are sought, in the form that suits its size: on moments, K x K, or on rows where these are
 * fewer than inputs. The loop over candidates (least_squares.c) works on either.
 *
 * The error of a set is E |w x + b - y|^2 = w G w' - 2 w c' + t + (b + w mu - m)^2, with centred G, c, t. A problem
 * knows the centred part; what the mean adds is the loop's. Where the bias stays, the part that candidates minimise
 * includes the mean with that bias. */
#ifndef QK_INTEGER_PROBLEM_H
#define QK_INTEGER_PROBLEM_H

#include "base/run.h"
#include "kernels/kernels.h"
#include "moments/quadratic.h"

/* Outputs of one group. */
typedef struct {
    qk_row_block rows;
    int64_t line; /* where they stand in the arrays of the batch */
} qk_batch_part;

/* Outputs that are worked on together. Its arrays have a line for each: (lines, K) or (lines). */
typedef struct {
    int64_t inputs, lines; /* K */
    int64_t blocks, pieces;
    qk_batch_part *block; /* (blocks), by line: at most QK_LANES outputs, which are solved side by side */
    qk_batch_part *piece; /* (pieces), by line: at most QK_PIECE outputs, the unit of products */
    const qk_quantized_layer *start;
    float *q0, *w0; /* (lines, K): the start, as integers and as weights */
    float *lo, *hi; /* (lines, K): the integers that a weight may take */
} qk_batch;
enum { QK_PIECE = 128 };

/* Memory for at most `blocks` blocks. QK_E_NOMEM: destroy what there is. */
qk_status qk_batch_new(qk_batch *batch, const qk_quantized_layer *start, int64_t inputs, int64_t blocks);
void qk_batch_destroy(qk_batch *batch);
/* Fills the batch from the blocks that the indices name, ascending, as qk_row_block_at counts blocks of QK_LANES
 * outputs. */
void qk_batch_fill(qk_batch *batch, const qk_quadratic *shape, qk_rounding_range rounding, const int64_t *indices,
                   int64_t count);

typedef struct qk_problem qk_problem;

/* Operations use the pool themselves, in pieces that do not depend on the number of threads, and ask `cancelled` at
 * least every half second. All return QK_OK, QK_E_NOMEM or QK_E_CANCELLED. They are called in the order in which they
 * stand here, any of them as often as wanted; `q` (lines, K) holds whole numbers. */
typedef struct {
    /* What all candidates for these outputs share, as the slopes at the start. error[set] (lines): the centred part of
     * the error of the start, in float64. The batch stays until the next call. */
    qk_status (*begin)(qk_problem *p, const qk_batch *batch, double *const error[2]);
    /* From now on lam = damping * mean diagonal of G, by group, is added to G, and lam w to c with the float weight w.
     * rounds: `round` will be called. What an earlier call made may be kept. */
    qk_status (*damp)(qk_problem *p, double damping, bool rounds);
    /* GPTQ to the damped minimum, or with few inputs the closest point to it: sets q. */
    qk_status (*round)(qk_problem *p, float *q);
    /* Cyclic coordinate descent on the damped error, until nothing moves or for max_sweeps: from the q that `round` set
     * last, or, where it was not called since `damp`, from the start, which q becomes. */
    qk_status (*descend)(qk_problem *p, float *q, int max_sweeps);
    /* change (lines): of the centred part of the error of a set, from the start to q, without damping. Of the fitted
     * set: q is what `descend` left last. */
    qk_status (*judge)(qk_problem *p, qk_set set, const float *q, double *change);
    void (*destroy)(qk_problem *p);
} qk_problem_operations;

/* The first member of either form. */
struct qk_problem {
    const qk_problem_operations *does;
    qk_run run;
    int64_t groups, inputs, outputs;     /* K, O per group */
    const double *mean_x[2], *mean_y[2]; /* by set: (groups * K), (groups * O) */
    const double *power[2];              /* (groups * O): centred t */
    bool float64_factor;                 /* float32 was not enough for one of the factors so far */
};

/* What GPTQ and descent need of a block's inputs begin .. end - 1; arrays (end - begin, QK_LANES), and
 * (scales, QK_LANES) of all inputs. Unused lanes are zero, their scale is one. */
typedef struct {
    float *q, *lo, *hi;
    float *scale, *zp;
} qk_lane_arrays;
/* Numbers that the arrays take together: count inputs, scales per output. */
int64_t qk_lane_arrays_size(int64_t count, int64_t scales);
qk_lane_arrays qk_lane_arrays_in(float *memory, int64_t count, int64_t scales);
void qk_lanes_from(const qk_batch *batch, const qk_batch_part *block, const float *q, int64_t begin, int64_t end,
                   qk_lane_arrays to);
/* One array, from lines to lanes and back. */
void qk_lanes_of(const qk_batch *batch, const qk_batch_part *block, const float *lines, int64_t begin, int64_t end,
                 float *to);
void qk_lines_of(const qk_batch *batch, const qk_batch_part *block, const float *lanes, int64_t begin, int64_t end,
                 float *to);
/* scale (end - begin): of each of these inputs of an output. */
void qk_line_scales(const qk_batch *batch, int64_t row, int64_t begin, int64_t end, float *scale);

#endif
