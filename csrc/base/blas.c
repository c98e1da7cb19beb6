#include "base/blas.h"

#include <math.h>
#include <pthread.h>

#include <cblas.h>

#ifdef BLAS_SYMBOL_PREFIX
#define QK_JOIN_(a, b) a##b
#define QK_JOIN(a, b) QK_JOIN_(a, b)
#define BLAS(name) QK_JOIN(BLAS_SYMBOL_PREFIX, name)
#else
#define BLAS(name) name
#endif

static pthread_mutex_t section_lock = PTHREAD_MUTEX_INITIALIZER;
static int open_sections, threads_outside;

void qk_blas_enter(void) {
    pthread_mutex_lock(&section_lock);
    if (open_sections++ == 0) {
        threads_outside = BLAS(openblas_get_num_threads)();
        if (threads_outside != 1) BLAS(openblas_set_num_threads)(1);
    }
    pthread_mutex_unlock(&section_lock);
}

void qk_blas_leave(void) {
    pthread_mutex_lock(&section_lock);
    if (--open_sections == 0 && threads_outside != 1) BLAS(openblas_set_num_threads)(threads_outside);
    pthread_mutex_unlock(&section_lock);
}

const char *qk_blas_config(void) { return BLAS(openblas_get_config)(); }

#define GEMM(function, c, a, b, s)                                                                         \
    BLAS(function)(CblasRowMajor, (s).a_transposed ? CblasTrans : CblasNoTrans,                            \
                   (s).b_transposed ? CblasTrans : CblasNoTrans, (int)(s).m, (int)(s).n, (int)(s).k, 1, a, \
                   (int)(s).lda, b, (int)(s).ldb, (s).accumulate ? 1 : 0, c, (int)(s).ldc)

void qk_sgemm(float *c, const float *a, const float *b, qk_gemm_shape s) { GEMM(cblas_sgemm, c, a, b, s); }
void qk_dgemm(double *c, const double *a, const double *b, qk_gemm_shape s) { GEMM(cblas_dgemm, c, a, b, s); }

static bool cholesky_block(double *a, int64_t n, int64_t lda) {
    for (int64_t j = 0; j < n; j++) {
        double d = a[j * lda + j];
        for (int64_t k = 0; k < j; k++) d -= a[j * lda + k] * a[j * lda + k];
        if (!(d > 0) || !isfinite(d)) return false;
        d = a[j * lda + j] = sqrt(d);
        for (int64_t i = j + 1; i < n; i++) {
            double s = a[i * lda + j];
            for (int64_t k = 0; k < j; k++) s -= a[i * lda + k] * a[j * lda + k];
            a[i * lda + j] = s / d;
        }
    }
    return true;
}

bool qk_cholesky(double *a, int64_t n) {
    enum { B = 64 };
    for (int64_t j = 0; j < n; j += B) {
        int64_t b = n - j < B ? n - j : B, rest = n - j - b;
        double *diag = a + j * n + j, *below = diag + b * n;
        if (!cholesky_block(diag, b, n)) return false;
        if (!rest) break;
        BLAS(cblas_dtrsm)(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)rest, (int)b, 1, diag,
                          (int)n, below, (int)n);
        BLAS(cblas_dsyrk)(CblasRowMajor, CblasLower, CblasNoTrans, (int)rest, (int)b, -1, below, (int)n, 1, below + b,
                          (int)n);
    }
    return true;
}

void qk_cholesky_solve(double *x, int64_t m, const double *l, int64_t n) {
    BLAS(cblas_dtrsm)(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)m, (int)n, 1, l, (int)n, x,
                      (int)n);
    BLAS(cblas_dtrsm)(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)m, (int)n, 1, l, (int)n,
                      x, (int)n);
}
