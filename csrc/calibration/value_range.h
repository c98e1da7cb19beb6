/* What a pass over a tensor left: the inside of qk_value_range. */
#ifndef QK_VALUE_RANGE_H
#define QK_VALUE_RANGE_H

#include "qk.h"

struct qk_value_range {
    int bins;
    float lo, hi;
    uint64_t count;
    int exponent; /* bin width is 2^exponent */
    bool has_width;
    /* (2, bins) of |x| in [i, i + 1) * width: x >= 0, then x < 0. The last of each also holds |x| == bins * width. */
    uint64_t *counts;
};

/* The values between bin and bin + 1 widths, bin from -bins to bins - 1. */
static inline uint64_t qk_value_range_in(const qk_value_range *r, int bin) {
    return r->counts[bin < 0 ? r->bins - 1 - bin : bin];
}

#endif
