#include "training/schedule.h"

#include <math.h>

bool qk_schedule_is_warm(const qk_schedule *s, int64_t it) {
    return (double)it >= s->warm_start * (double)s->iterations;
}

double qk_schedule_beta(const qk_schedule *s, int64_t it) {
    const double pi = 3.14159265358979323846, n = (double)s->iterations, warm = s->warm_start * n;
    if ((double)it < warm) return s->beta_start;
    const double r = ((double)it - warm) / (n - warm);
    return s->beta_end + 0.5 * (s->beta_start - s->beta_end) * (1 + cos(pi * r));
}
