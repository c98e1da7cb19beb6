/* Arithmetic of sizes and counts. */
#ifndef QK_SIZES_H
#define QK_SIZES_H

#include <stdint.h>

static inline int64_t qk_smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t qk_larger(int64_t a, int64_t b) { return a > b ? a : b; }
/* a >= 0, b >= 1 */
static inline int64_t qk_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* More numbers than any memory holds (16 TiB of float64). Far enough from INT64_MAX that what is computed from fewer
 * does not wrap: bytes, and copies for every thread. */
#define QK_MOST_NUMBERS (INT64_C(1) << 41)

/* The product of sizes; -1 where one of them is negative or the product is no int64_t. */
static inline int64_t qk_product_of(const int64_t *sizes, int count) {
    int64_t product = 1;
    for (int i = 0; i < count; i++)
        if (product < 0 || sizes[i] < 0 || __builtin_mul_overflow(product, sizes[i], &product)) product = -1;
    return product;
}
#define QK_PRODUCT(...) \
    qk_product_of((const int64_t[]){__VA_ARGS__}, sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

#endif
