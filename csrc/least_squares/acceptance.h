/* When an output takes a candidate. */
#ifndef QK_ACCEPTANCE_H
#define QK_ACCEPTANCE_H

#include <stdbool.h>

/* change: of the held-out error of one output, from the start; best: that of the candidate it has, 0 for the start. */
static inline bool qk_accepts(double change, double best) { return change < best; }

#endif
