/* The only place that spells BLAS names. OpenBLAS, LP64, with or without a symbol prefix. Every call runs in
 * the calling thread (our own pool makes the parallelism), so results do not depend on OpenBLAS's threads. */
#ifndef QK_BLAS_H
#define QK_BLAS_H

#include <stdbool.h>
#include <stdint.h>

/* OpenBLAS's thread count is process-wide: set to 1 while any section is open, restored after the last. The products
 * and factorisations below are called inside of a section. A fork() waits for those of other threads to return; in the
 * child only the sections of the thread that forked are open. */
void qk_blas_enter(void);
void qk_blas_leave(void);
/* Has OpenBLAS take the memory that it needs for a call, which it then keeps. false: there is none. OpenBLAS ends the
 * process where it finds out by itself. */
bool qk_blas_reserve(void);
/* "OpenBLAS 0.3.34 DYNAMIC_ARCH ..." */
const char *qk_blas_config(void);

/* Row-major. c (m,n) = a (m,k) b (k,n), with a given as (k,m) when a_transposed and b as (n,k) when b_transposed;
 * leading dimensions in elements. accumulate: c += instead; negative: -a b in place of a b. */
typedef struct {
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    bool a_transposed, b_transposed;
    bool accumulate, negative;
} qk_gemm_shape;
void qk_sgemm(float *c, const float *a, const float *b, qk_gemm_shape s);
void qk_dgemm(double *c, const double *a, const double *b, qk_gemm_shape s);

/* Rows of x (m,n) become rows of x L'^-1; l (n,n): its lower triangle. */
void qk_strsm(float *x, int64_t m, const float *l, int64_t n, int64_t ldx, int64_t ldl);
void qk_dtrsm(double *x, int64_t m, const double *l, int64_t n, int64_t ldx, int64_t ldl);

/* Lower triangle of a (n,n) becomes its Cholesky factor L, a = L L'. false: not positive definite. */
bool qk_cholesky(double *a, int64_t n);
/* Rows of x (m,n) become rows of x (L L')^-1. */
void qk_cholesky_solve(double *x, int64_t m, const double *l, int64_t n);

#endif
