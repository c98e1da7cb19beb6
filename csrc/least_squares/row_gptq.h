#ifndef QK_ROW_GPTQ_H
#define QK_ROW_GPTQ_H

#include "solvers/integer_problem.h"

/* GPTQ on rows: the operation `round` of a row problem. */
qk_status qk_row_round(qk_problem *problem, float *q);

#endif
