/* The inner loops, as a table: one entry per loop, one table per instruction set, picked once at run time.
 * Every table holds the same source (body.inc) compiled for its instruction set, without contraction to FMA and
 * with sums in a fixed number of lanes, so that all tables give the same bits. No malloc, no threads, no errors. */
#ifndef QK_KERNELS_H
#define QK_KERNELS_H

#include "qk.h"

typedef struct {
    const char *isa;

    void (*fake_quant)(float *restrict y, const float *restrict x, size_t n, qk_affine affine, qk_grid grid);

    /* dst = (src - zero_point) * scale, DequantizeLinear on 8 bits. */
    void (*dequantize_u8)(float *restrict dst, const uint8_t *restrict src, size_t n, qk_affine affine);
    void (*dequantize_i8)(float *restrict dst, const int8_t *restrict src, size_t n, qk_affine affine);

    /* Widens [*lo, *hi] by the values; false if one is NaN or Inf. */
    bool (*min_max)(const float *x, size_t n, float *lo, float *hi);
    /* index[i] = min(|x[i]| * inverse_width, last) */
    void (*bin_indices)(uint32_t *restrict index, const float *restrict x, size_t n, float inverse_width,
                        uint32_t last);

    /* sum and sum of squares of n values */
    double (*sum)(const float *x, size_t n);
    double (*sum_squares)(const float *x, size_t n);
    /* gram (k,k) += panel panel', cross (k) += panel y, for k short rows of n values `stride` apart. Both triangles. */
    void (*gram_panel)(double *restrict gram, double *restrict cross, const float *panel, const float *y, int64_t k,
                       int64_t stride, size_t n);

    /* y += a x */
    void (*axpy)(double *restrict y, double a, const double *restrict x, size_t n);
    double (*dot)(const double *x, const double *y, size_t n);
} qk_kernels;

const qk_kernels *qk_kernels_get(void);

extern const qk_kernels qk_kernels_scalar;
#if defined(__x86_64__) && defined(__GNUC__)
#define QK_HAVE_X86 1
extern const qk_kernels qk_kernels_avx2, qk_kernels_avx512;
#endif

#endif
