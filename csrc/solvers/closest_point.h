#ifndef QK_CLOSEST_POINT_H
#define QK_CLOSEST_POINT_H

#include "solvers/integer_rows.h"

/* Minimises the objective of qk_gptq for one lane of few inputs, depth first: the first branch is that of GPTQ,
 * then come integers that are farther away but leave less to the inputs before them, as long as they may be better
 * (Schnorr and Euchner, Math. Programming 66, 1994). Exact, unless it ends after looking at QK_MOST_NODES integers. In
 * float64. target (K), l (K,K). Sets q of the lane. */
enum { QK_FEW_INPUTS = 32, QK_MOST_NODES = 1024 /* depthwise 3x3 in AdaRound's rounding range has 1022 */ };
void qk_closest_point(const qk_integer_rows *rows, int lane, const double *target, const double *l);

#endif
