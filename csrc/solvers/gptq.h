#ifndef QK_GPTQ_H
#define QK_GPTQ_H

#include "solvers/integer_rows.h"

/* GPTQ, alias OPTQ (arXiv 2210.17323), which is Babai's nearest plane (2507.18553) and is called successive rounding
 * here: minimises (w - target) L L' (w - target)' greedily from the last input to the first, each rounding error being
 * carried on to the inputs before it. l (K,K): lower Cholesky factor. target (K, QK_LANES). scratch (2, K, QK_LANES).
 * Sets q. */
void qk_gptq(qk_integer_rows *rows, const float *target, const float *l, float *scratch);

#endif
