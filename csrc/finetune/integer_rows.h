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

/* Successive rounding (Babai's nearest plane; equal to OPTQ/GPTQ, arXiv 2210.17323, 2507.18553): minimises
 * (w - target) L L' (w - target)' greedily from the last input to the first, each rounding error being carried on to
 * the inputs before it. l (K,K): lower Cholesky factor. target (K, QK_LANES). scratch (2, K, QK_LANES). Sets q. */
void qk_successive_rounding(qk_integer_rows *rows, const float *target, const float *l, float *scratch);

/* The same objective for one lane of few inputs, depth first: the first branch is successive rounding, then come
 * integers that are farther away but leave less to the inputs before them, as long as they may be better (Schnorr and
 * Euchner, Math. Programming 66, 1994). Exact, unless it ends after looking at QK_MOST_NODES integers. In float64.
 * target (K), l (K,K). Sets q of the lane. */
enum { QK_FEW_INPUTS = 32, QK_MOST_NODES = 1024 /* depthwise 3x3 in AdaRound's box has 1022 */ };
void qk_closest_point(const qk_integer_rows *rows, int lane, const double *target, const double *l);

/* Cyclic coordinate descent (QuantEase, arXiv 2309.01885; COMQ, 2403.07134) on w G w' - 2 w c' from the present q,
 * until nothing moves or `max_sweeps` is reached. gram (K,K); residual (K, QK_LANES): w G - c, kept up to date;
 * scratch (K, QK_LANES). */
void qk_coordinate_descent(qk_integer_rows *rows, const float *gram, float *residual, int max_sweeps, float *scratch);

#endif
