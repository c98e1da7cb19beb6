/* SplitMix64 (Steele, Lea, Flood 2014): a seeded stream of 64-bit numbers, the same on every machine. */
#ifndef QK_RANDOM_H
#define QK_RANDOM_H

#include <stdint.h>

typedef struct {
    uint64_t state;
} qk_random;

static inline uint64_t qk_random_next(qk_random *r) {
    uint64_t z = (r->state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Uniform in 0 .. n - 1 up to a bias of n / 2^64. n >= 1. */
static inline uint64_t qk_random_below(qk_random *r, uint64_t n) { return qk_random_next(r) % n; }

/* The stream of item `index` under `seed`: does not depend on how many streams were drawn before. */
static inline qk_random qk_random_stream(uint64_t seed, uint64_t index) {
    qk_random r = {seed ^ (index * UINT64_C(0xD1342543DE82EF95))};
    r.state = qk_random_next(&r);
    return r;
}

#endif
