#ifndef QK_COORDINATE_DESCENT_H
#define QK_COORDINATE_DESCENT_H

#include "solvers/sweep.h"

/* Cyclic coordinate descent (QuantEase, arXiv 2309.01885; COMQ, 2403.07134) on w G w' - 2 w c' from the present q,
 * until nothing moves or `max_sweeps` is reached. matrix: G; lines: w G - c, kept up to date. QK_E_CANCELLED. */
qk_status qk_coordinate_descent(qk_sweep *sweep, int max_sweeps);

#endif
