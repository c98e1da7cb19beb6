/* The kernels for AVX2. */
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx2")
#define QK_ISA avx2
#define QK_AVX2
#include "kernels/body.inc"
#endif
