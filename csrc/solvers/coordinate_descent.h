#ifndef QK_COORDINATE_DESCENT_H
#define QK_COORDINATE_DESCENT_H

#include "solvers/integer_rows.h"

/* Cyclic coordinate descent (QuantEase, arXiv 2309.01885; COMQ, 2403.07134) on w G w' - 2 w c' from the present q,
 * until nothing moves or `max_sweeps` is reached. gram (K,K); residual (K, QK_LANES): w G - c, kept up to date;
 * scratch (K, QK_LANES). */
void qk_coordinate_descent(qk_integer_rows *rows, const float *gram, float *residual, int max_sweeps, float *scratch);

#endif
