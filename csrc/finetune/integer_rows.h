/* A block of output channels whose weights move over the integers: w = s (q - zp), lo <= q <= hi.
 * The two solvers work on such blocks; each row of a block is a problem of its own. */
#ifndef QK_INTEGER_ROWS_H
#define QK_INTEGER_ROWS_H

#include "qk.h"

typedef struct {
    int64_t count, inputs;  /* rows of the block, K */
    const float *scale;     /* (count) */
    const int32_t *zp;      /* (count) */
    const int32_t *lo, *hi; /* (count, K) */
    int32_t *q;             /* (count, K) */
    double *w;              /* (count, K), always s (q - zp) */
} qk_integer_rows;

enum { QK_COLUMN_BLOCK = 64 }; /* columns solved together before one matrix product brings the rest up to date */

/* Successive rounding (Babai's nearest plane; equal to OPTQ/GPTQ, arXiv 2210.17323, 2507.18553): minimises
 * (w - target) L L' (w - target)' greedily from the last column to the first, each rounding error being carried on to
 * the columns before it. l (K,K): lower Cholesky factor. target (count,K). scratch (2, count, K). Sets q and w. */
void qk_successive_rounding(qk_integer_rows *rows, const double *target, const double *l, double *scratch);

/* Cyclic coordinate descent (QuantEase, arXiv 2309.01885; COMQ, 2403.07134) on w G w' - 2 w c' from the present q,
 * until nothing moves or `max_sweeps` is reached. gram (K,K), cross (count,K), scratch (2, count, K). Never makes it
 * worse. */
void qk_coordinate_descent(qk_integer_rows *rows, const double *gram, const double *cross, int max_sweeps,
                           double *scratch);

#endif
