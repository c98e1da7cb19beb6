/* Selective update: the distance of a model's outputs; python/selective.c is its Python side. */
#include "qk.h"

#include <math.h>

enum { LANES = 8 }; /* of a sum: fixed, and with them the order of additions */

qk_selective qk_selective_start(void) { return (qk_selective){.best = INFINITY}; }

static double squared_distance(const float *a, const float *b, int64_t n) {
    double lanes[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t lane = 0; lane < LANES && i + lane < n; lane++) {
            const double d = (double)a[i + lane] - (double)b[i + lane];
            lanes[lane] += d * d;
        }
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

void qk_selective_add(qk_selective *s, const float *have, const float *want, int64_t samples, int64_t size) {
    for (int64_t i = 0; i < samples; i++) s->sum += sqrt(squared_distance(have + i * size, want + i * size, size));
    s->norms += samples;
}

double qk_selective_score(qk_selective *s) {
    const double mean = s->norms > 0 ? s->sum / (double)s->norms : NAN;
    s->sum = 0;
    s->norms = 0;
    return mean;
}

bool qk_selective_keep(qk_selective *s, double score) {
    const bool better = score < s->best;
    if (better) s->best = score;
    return better;
}
