/* The kernels for AVX-512. */
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define QK_ISA avx512
#define QK_AVX512
#include "kernels/body.inc"
#endif
