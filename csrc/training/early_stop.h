/* Early stop: a layer's training ends when the mean loss of a window of steps is no better than the best before. */
#ifndef QK_EARLY_STOP_H
#define QK_EARLY_STOP_H

#include "qk.h"

typedef struct {
    int64_t window;   /* steps */
    int64_t patience; /* windows without improvement that are still let pass */
    double best, sum;
    int64_t count, bad;
} qk_early_stop;

typedef enum { QK_GO_ON, QK_NEW_BEST, QK_STOP } qk_verdict;

qk_early_stop qk_early_stop_start(int64_t window, int64_t patience);
/* Whether the next step is the last one of its window. */
static inline bool qk_early_stop_ends_window(const qk_early_stop *e) { return e->count + 1 == e->window; }
/* Takes the loss of one more step. QK_NEW_BEST and QK_STOP come only at the end of a window. */
qk_verdict qk_early_stop_add(qk_early_stop *e, double loss);

#endif
