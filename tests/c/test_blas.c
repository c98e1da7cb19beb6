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
    qk_blas_enter(); /* OpenBLAS's own threads hand over work in ways that ThreadSanitizer does not see */
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
    qk_blas_leave();
}

static void cholesky_refuses_what_is_not_positive_definite(void) {
    qk_blas_enter();
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
    qk_blas_leave();
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

/* Products in sections of its own, until told to stop. */
static void *multiply_for_ever(void *stop) {
    enum { N = 16 };
    float a[N * N] = {1}, c[N * N];
    while (!atomic_load((atomic_bool *)stop)) {
        qk_blas_enter();
        qk_sgemm(c, a, a, (qk_gemm_shape){.m = N, .n = N, .k = N, .lda = N, .ldb = N, .ldc = N});
        qk_blas_leave();
    }
    return NULL;
}

static bool multiply_in_child(void *threads_outside) {
    const float a[4] = {1, 2, 3, 4};
    float c[4];
    qk_blas_enter();
    qk_sgemm(c, a, a, (qk_gemm_shape){.m = 2, .n = 2, .k = 2, .lda = 2, .ldb = 2, .ldc = 2});
    qk_blas_leave();
    return c[0] == 7 && c[3] == 22 && BLAS(openblas_get_num_threads)() == *(int *)threads_outside;
}

static void a_child_is_not_kept_out_by_threads_that_it_does_not_have(void) {
    int outside = BLAS(openblas_get_num_threads)();
    atomic_bool stop = false;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, multiply_for_ever, &stop) == 0);
    for (int i = 0; i < 300; i++) CHECK(qk_child_succeeds(multiply_in_child, &outside));
    atomic_store(&stop, true);
    pthread_join(other, NULL);
    CHECK(BLAS(openblas_get_num_threads)() == outside);
}

static void a_section_goes_on_in_a_child(void) {
    int one = 1;
    qk_blas_enter();
    CHECK(qk_child_succeeds(multiply_in_child, &one));
    qk_blas_leave();
}

QK_TESTS(QK_TEST(gemm_multiplies_row_major), QK_TEST(cholesky_gives_the_factor),
         QK_TEST(cholesky_refuses_what_is_not_positive_definite), QK_TEST(a_section_borrows_the_thread_count),
         QK_TEST(a_child_is_not_kept_out_by_threads_that_it_does_not_have), QK_TEST(a_section_goes_on_in_a_child))
