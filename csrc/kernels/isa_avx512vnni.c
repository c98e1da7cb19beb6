/* The kernels for AVX-512 with VNNI, products of bytes. */
#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#define QK_ISA avx512vnni
#define QK_VNNI
#include "kernels/body.inc"
#endif
