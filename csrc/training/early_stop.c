/* Early stop, and selective update: whether what was trained is better than what there was. */
#include "training/early_stop.h"

#include <math.h>

qk_early_stop qk_early_stop_start(int64_t window, int64_t patience) {
    return (qk_early_stop){.window = window < 1 ? 1 : window, .patience = patience, .best = INFINITY};
}

qk_verdict qk_early_stop_add(qk_early_stop *e, double loss) {
    e->sum += loss;
    if (++e->count < e->window) return QK_GO_ON;
    const double mean = e->sum / (double)e->window;
    e->sum = 0;
    e->count = 0;
    if (mean < e->best) {
        e->best = mean;
        e->bad = 0;
        return QK_NEW_BEST;
    }
    return ++e->bad > e->patience ? QK_STOP : QK_GO_ON;
}

/* ---- selective update ------------------------------------------------------------------------- */

static double squared_distance(const float *a, const float *b, int64_t n) {
    enum { LANES = 8 }; /* The number is fixed, and with it the order of additions. */
    double lanes[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += LANES)
        for (int64_t lane = 0; lane < LANES && i + lane < n; lane++) {
            const double d = (double)a[i + lane] - (double)b[i + lane];
            lanes[lane] += d * d;
        }
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

double qk_add_distances(double sum, const float *have, const float *want, int64_t samples, int64_t size) {
    for (int64_t i = 0; i < samples; i++) sum += sqrt(squared_distance(have + i * size, want + i * size, size));
    return sum;
}

bool qk_is_better(double score, double kept) { return score < kept; }
