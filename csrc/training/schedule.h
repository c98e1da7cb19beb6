/* What changes from step to step: AdaRound's warm-up and the exponent of its regulariser (arXiv 2004.10568, 3.1). */
#ifndef QK_SCHEDULE_H
#define QK_SCHEDULE_H

#include "qk.h"

typedef struct {
    int64_t iterations;
    double warm_start;           /* share of the steps without regulariser */
    double beta_start, beta_end; /* annealed by a cosine after warm-up */
} qk_schedule;

/* Whether the regulariser counts at step `it`, 0 <= it < iterations. */
bool qk_schedule_is_warm(const qk_schedule *s, int64_t it);
/* The exponent at step `it`. */
double qk_schedule_beta(const qk_schedule *s, int64_t it);

#endif
