#ifndef QK_GPTQ_H
#define QK_GPTQ_H

#include "solvers/sweep.h"

/* GPTQ, alias OPTQ (arXiv 2210.17323), which is Babai's nearest plane (2507.18553): minimises (w - t) L L' (w - t)' by
 * rounding one input after the other, greedily from the last input to the first, each rounding error being carried on
 * to the inputs before it. matrix: the lower Cholesky factors L, zero above the diagonal. Sets q.
 *
 * lines: the slope (w0 - t) L L' at the start w0, on entry; that at q, on return. Line j of L' (w - t) is
 * L_jj d_j + sum_{i>j} L_ij d_i + c_j, with d = w - w0 and c = L^-1 of the slope at the start: so the target t itself
 * is not needed. errors (lines, K): scratch. QK_E_CANCELLED. */
qk_status qk_gptq(qk_sweep *sweep, float *errors);

#endif
