#ifndef QK_ROW_PROBLEM_H
#define QK_ROW_PROBLEM_H

#include "moments/layer.h"
#include "solvers/integer_problem.h"

/* The form on rows, for a layer that keeps them, which must outlive it. bias_free: else the bias of the start stays.
 * Batches have at most `blocks` blocks. Inside of qk_blas_enter, until it is destroyed. QK_E_NOMEM, QK_E_NO_ROWS,
 * QK_E_NONFINITE, QK_E_TOO_LARGE, QK_E_CANCELLED. */
qk_status qk_row_problem_new(qk_problem **problem, const qk_layer *layer, const qk_quantized_layer *start,
                             bool bias_free, int64_t blocks, const qk_run *run);

#endif
