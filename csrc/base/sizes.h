/* Arithmetic of sizes and counts. */
#ifndef QK_SIZES_H
#define QK_SIZES_H

#include <stdint.h>

static inline int64_t qk_smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t qk_larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t qk_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
