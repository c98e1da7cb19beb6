#ifndef QK_ROW_DESCENT_H
#define QK_ROW_DESCENT_H

#include "solvers/integer_problem.h"

/* Coordinate descent on rows: the operation `descend` of a row problem. */
qk_status qk_row_descend(qk_problem *problem, float *q, int max_sweeps);

#endif
