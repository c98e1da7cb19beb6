#include "kernels/kernels.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The instruction sets in ascending order; QK_MAX_ISA names one of them. */
typedef enum { SCALAR, AVX2, AVX512, AVX512VNNI, SETS } isa;
static const char *const isa_names[SETS] = {"scalar", "avx2", "avx512", "avx512vnni"};

/* SETS where the variable names none. */
static isa most(void) {
    const char *cap = getenv("QK_MAX_ISA");
    if (!cap || !*cap) return SETS - 1;
    isa named = SCALAR;
    while (named < SETS && strcmp(cap, isa_names[named]) != 0) named++;
    return named;
}

bool qk_isa_cap_is_known(void) { return most() < SETS; }

static const qk_kernels *choose(void) {
#ifdef QK_HAVE_X86
    const isa cap = most();
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (cap >= AVX512VNNI && avx512 && __builtin_cpu_supports("avx512vnni")) return &qk_kernels_avx512vnni;
    if (cap >= AVX512 && avx512) return &qk_kernels_avx512;
    if (cap >= AVX2 && __builtin_cpu_supports("avx2")) return &qk_kernels_avx2;
#endif
    return &qk_kernels_scalar;
}

const qk_kernels *qk_kernels_get(void) {
    /* Every thread would choose the same, so a lock, which a child of fork() might find locked, is not needed. */
    static _Atomic(const qk_kernels *) chosen;
    const qk_kernels *kernels = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!kernels) atomic_store_explicit(&chosen, kernels = choose(), memory_order_release);
    return kernels;
}

qk_adam qk_adam_at(double learning_rate, int64_t t) {
    return (qk_adam){(float)(learning_rate / (1 - pow(0.9, (double)t))), (float)(1 / (1 - pow(0.999, (double)t)))};
}

const char *qk_isa(void) { return qk_kernels_get()->isa; }

void qk_fake_quant(float *y, const float *x, size_t n, qk_affine affine, qk_grid grid) {
    qk_kernels_get()->fake_quant(y, x, n, affine, grid);
}
