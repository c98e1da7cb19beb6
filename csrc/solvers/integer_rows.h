/* QK_LANES output channels whose weights move over the integers: w = scale (q - zp), lo <= q <= hi. Each channel is a
 * problem of its own; side by side they make every step of the two solvers a vector operation. Arrays are transposed,
 * (K, QK_LANES). In float32: a step is decided by one division and one rounding, and what was decided is judged on
 * other data in the end. */
#ifndef QK_INTEGER_ROWS_H
#define QK_INTEGER_ROWS_H

#include "kernels/kernels.h"

typedef struct {
    int64_t inputs;          /* K */
    const float *scale, *zp; /* (QK_LANES), or (blocks, QK_LANES) */
    const float *lo, *hi;    /* (K, QK_LANES) */
    float *q;                /* (K, QK_LANES) whole numbers */
    int64_t scale_block;     /* inputs that share a scale; 0: all */
} qk_integer_rows;

enum { QK_COLUMN_BLOCK = 64 }; /* inputs solved together before one matrix product brings the rest up to date */

#endif
