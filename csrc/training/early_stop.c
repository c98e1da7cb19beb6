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
