#include "kernels/kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const qk_kernels *chosen;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void) {
    chosen = &qk_kernels_scalar;
#ifdef QK_HAVE_X86
    const char *cap = getenv("QK_MAX_ISA");
    if (cap && strcmp(cap, "scalar") == 0) return;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) chosen = &qk_kernels_avx2;
    if (cap && strcmp(cap, "avx2") == 0) return;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        chosen = &qk_kernels_avx512;
    if (cap && strcmp(cap, "avx512") == 0) return;
    if (chosen == &qk_kernels_avx512 && __builtin_cpu_supports("avx512vnni")) chosen = &qk_kernels_avx512vnni;
#endif
}

const qk_kernels *qk_kernels_get(void) {
    pthread_once(&once, choose);
    return chosen;
}

qk_adam qk_adam_at(double learning_rate, int64_t t) {
    return (qk_adam){(float)(learning_rate / (1 - pow(0.9, (double)t))), (float)(1 / (1 - pow(0.999, (double)t)))};
}

const char *qk_isa(void) { return qk_kernels_get()->isa; }

void qk_fake_quant(float *y, const float *x, size_t n, qk_affine affine, qk_grid grid) {
    qk_kernels_get()->fake_quant(y, x, n, affine, grid);
}
