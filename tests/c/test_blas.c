#include "base/blas.h"

#include <cblas.h>

#include "qk_test.h"

#ifdef BLAS_SYMBOL_PREFIX
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define BLAS(name) JOIN(BLAS_SYMBOL_PREFIX, name)
#else
#define BLAS(name) name
#endif

static double *doubles(qk_random *r, int64_t n) {
    double *x = MEMORY(double, n);
    for (int64_t i = 0; i < n; i++) x[i] = qk_uniform(r, -1, 1);
    return x;
}

/* A A' + n I, positive definite. */
static double *positive_definite(qk_random *r, int64_t n) {
    double *a = doubles(r, n * n), *p = MEMORY(double, n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            p[i * n + j] = i == j ? (double)n : 0;
            for (int64_t k = 0; k < n; k++) p[i * n + j] += a[i * n + k] * a[j * n + k];
        }
    free(a);
    return p;
}

static void gemm_multiplies_row_major(void) {
    qk_random r = {1};
    const int64_t m = 5, n = 7, k = 11, lda = 13, ldb = 12, ldc = 9;
    double *a = doubles(&r, k * lda), *b = doubles(&r, 16 * ldb), *c = doubles(&r, m * ldc), *d = MEMORY(double, m * ldc);
    float fa[11 * 13], fb[16 * 12], fc[5 * 9];
    for (int transposed = 0; transposed < 4; transposed++) /* neither, b, a, both */
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            const bool a_transposed = transposed & 2, b_transposed = transposed & 1;
            const qk_gemm_shape s = {.m = m,
                                     .n = n,
                                     .k = k,
                                     .lda = lda,
                                     .ldb = ldb,
                                     .ldc = ldc,
                                     .a_transposed = a_transposed,
                                     .b_transposed = b_transposed,
                                     .accumulate = accumulate};
            memcpy(d, c, (size_t)(m * ldc) * sizeof *d);
            for (int i = 0; i < 11 * 13; i++) fa[i] = (float)a[i];
            for (int i = 0; i < 16 * 12; i++) fb[i] = (float)b[i];
            for (int i = 0; i < 5 * 9; i++) fc[i] = (float)c[i];
            qk_blas_enter();
            qk_dgemm(d, a, b, s);
            qk_sgemm(fc, fa, fb, s);
            qk_blas_leave();
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < ldc; j++) {
                    double expected = accumulate || j >= n ? c[i * ldc + j] : 0;
                    for (int64_t t = 0; t < k && j < n; t++)
                        expected += (a_transposed ? a[t * lda + i] : a[i * lda + t]) *
                                    (b_transposed ? b[j * ldb + t] : b[t * ldb + j]);
                    CHECK_CLOSE(d[i * ldc + j], expected, 1e-13);
                    CHECK_CLOSE(fc[i * ldc + j], expected, 1e-5);
                }
        }
    free(a);
    free(b);
    free(c);
    free(d);
}

static void cholesky_gives_the_factor(void) {
    const int64_t sizes[] = {1, 2, 7, 63, 64, 65, 130, 200}; /* around the block of 64 */
    for (int s = 0; s < 8; s++) {
        const int64_t n = sizes[s];
        qk_random r = {(uint64_t)n};
        double *a = positive_definite(&r, n), *l = MEMORY(double, n * n);
        memcpy(l, a, (size_t)(n * n) * sizeof *l);
        CHECK(qk_cholesky(l, n));
        for (int64_t i = 0; i < n; i++) {
            CHECK(l[i * n + i] > 0);
            for (int64_t j = 0; j <= i; j++) {
                double product = 0;
                for (int64_t k = 0; k <= j; k++) product += l[i * n + k] * l[j * n + k];
                CHECK_CLOSE(product, a[i * n + j], 1e-12);
            }
        }
        double *x = doubles(&r, 3 * n), *solved = MEMORY(double, 3 * n);
        memcpy(solved, x, (size_t)(3 * n) * sizeof *solved);
        qk_cholesky_solve(solved, 3, l, n);
        for (int64_t i = 0; i < 3; i++)
            for (int64_t j = 0; j < n; j++) {
                double back = 0;
                for (int64_t k = 0; k < n; k++) back += solved[i * n + k] * a[k * n + j];
                CHECK_CLOSE(back, x[i * n + j], 1e-11);
            }
        free(solved);
        free(x);
        free(l);
        free(a);
    }
}

static void cholesky_refuses_what_is_not_positive_definite(void) {
    for (int64_t n = 1; n <= 130; n += 43) {
        qk_random r = {7};
        for (int kind = 0; kind < 3; kind++) {
            double *a = positive_definite(&r, n);
            const double bad[] = {-1, 0, NAN};
            a[n * n - 1] = bad[kind]; /* the last pivot, so that every block is passed */
            CHECK(!qk_cholesky(a, n));
            free(a);
        }
    }
}

static void a_section_borrows_the_thread_count(void) {
    BLAS(openblas_set_num_threads)(2);
    const int outside = BLAS(openblas_get_num_threads)(); /* 1 where OpenBLAS was built for one */
    qk_blas_enter();
    CHECK(BLAS(openblas_get_num_threads)() == 1);
    qk_blas_enter();
    qk_blas_leave();
    CHECK(BLAS(openblas_get_num_threads)() == 1);
    qk_blas_leave();
    CHECK(BLAS(openblas_get_num_threads)() == outside);
    CHECK(strstr(qk_blas_config(), "OpenBLAS") != NULL);
}

QK_TESTS(QK_TEST(gemm_multiplies_row_major), QK_TEST(cholesky_gives_the_factor),
         QK_TEST(cholesky_refuses_what_is_not_positive_definite), QK_TEST(a_section_borrows_the_thread_count))
