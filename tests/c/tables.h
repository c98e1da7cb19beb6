/* The kernel tables that this machine can run. */
#ifndef QK_TABLES_H
#define QK_TABLES_H

#include "kernels/kernels.h"

enum { MOST_TABLES = 4 };

/* tables[0] is the scalar one. Returns how many there are. */
static inline int runnable(const qk_kernels **tables) {
    int n = 0;
    tables[n++] = &qk_kernels_scalar;
#ifdef QK_HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) tables[n++] = &qk_kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        tables[n++] = &qk_kernels_avx512;
        if (__builtin_cpu_supports("avx512vnni")) tables[n++] = &qk_kernels_avx512vnni;
    }
#endif
    return n;
}

#endif
