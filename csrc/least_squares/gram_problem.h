#ifndef QK_GRAM_PROBLEM_H
#define QK_GRAM_PROBLEM_H

#include "solvers/integer_problem.h"

/* The form on moments: centred, by qk_set, the caller's memory; both may be the same. bias_free: else the bias of the
 * start stays. Batches have at most `blocks` blocks. Inside of qk_blas_enter, until it is destroyed. QK_E_NOMEM. */
qk_status qk_gram_problem_new(qk_problem **problem, const qk_quadratic moments[2], const qk_quantized_layer *start,
                              bool bias_free, int64_t blocks, const qk_run *run);

#endif
