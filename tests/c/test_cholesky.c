/* Cholesky factors in tiles against the matrix that they are factors of. */
#include "base/blas.h"
#include "base/cholesky.h"
#include "qk_test.h"

enum { RANK = 3 };

/* (n,n): D + U U' with a positive diagonal D and U (n, RANK): full of numbers, and cheap to make. */
static double *positive_definite(int64_t n) {
    qk_random r = {(uint64_t)n};
    double *u = MEMORY(double, n * RANK), *a = MEMORY(double, n * n);
    for (int64_t i = 0; i < n * RANK; i++) u[i] = qk_uniform(&r, -1, 1);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            for (int64_t k = 0; k < RANK; k++) a[i * n + j] += u[i * RANK + k] * u[j * RANK + k];
            if (i == j) a[i * n + j] += qk_uniform(&r, 0.5, 2);
        }
    free(u);
    return a;
}

static float *as_floats(const double *a, int64_t n) {
    float *to = MEMORY(float, n);
    for (int64_t i = 0; i < n; i++) to[i] = (float)a[i];
    return to;
}

static double *as_doubles(const float *a, int64_t n) {
    double *to = MEMORY(double, n);
    for (int64_t i = 0; i < n; i++) to[i] = a[i];
    return to;
}

static void check_factor(const double *l, const double *a, int64_t n, double tolerance) {
    for (int64_t i = 0; i < n; i++) {
        CHECK(l[i * n + i] > 0);
        for (int64_t j = 0; j <= i; j++) {
            double product = 0;
            for (int64_t k = 0; k <= j; k++) product += l[i * n + k] * l[j * n + k];
            CHECK_CLOSE(product, a[i * n + j], tolerance);
        }
        for (int64_t j = i + 1; j < n; j++) CHECK(l[i * n + j] == 0);
    }
}

static qk_status factor(double *l64, float *l32, int64_t n, double least, int threads, bool positive[2]) {
    qk_pool *pool = qk_pool_new(threads);
    qk_run run = {.pool = pool};
    qk_status status = qk_cholesky_tiled_f64(l64, n, least, &run, &positive[0]);
    if (status == QK_OK) status = qk_cholesky_tiled_f32(l32, n, least, &run, &positive[1]);
    qk_pool_free(pool);
    return status;
}

/* Around the 64 columns of a loop and the 256 of a tile. */
static void the_factor_is_found_whatever_the_number_of_threads(void) {
    const int64_t sizes[] = {1, 63, 64, 65, 255, 256, 257, 520};
    qk_blas_enter();
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int64_t n = sizes[s];
        double *a = positive_definite(n), *first = NULL;
        float *first32 = NULL;
        for (int threads = 1; threads <= 3; threads += 2) {
            double *l = MEMORY(double, n * n);
            memcpy(l, a, (size_t)(n * n) * sizeof *l);
            float *l32 = as_floats(a, n * n);
            bool positive[2];
            CHECK(factor(l, l32, n, 1e-9, threads, positive) == QK_OK);
            CHECK(positive[0] && positive[1]);
            if (first) {
                CHECK_SAME(l, first, n * n);
                CHECK_SAME(l32, first32, n * n);
                free(l);
                free(l32);
            } else {
                first = l;
                first32 = l32;
            }
        }
        check_factor(first, a, n, 1e-12);
        double *wide = as_doubles(first32, n * n);
        check_factor(wide, a, n, 1e-5);
        free(wide);
        free(first32);
        free(first);
        free(a);
    }
    qk_blas_leave();
}

static void alone_it_is_a_factor_too(void) {
    const int64_t sizes[] = {1, 64, 65, 200};
    qk_blas_enter();
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int64_t n = sizes[s];
        double *a = positive_definite(n);
        float *l = as_floats(a, n * n), *pivots = MEMORY(float, n);
        CHECK(qk_cholesky_alone_f32(l, n, 1e-6, pivots));
        double *wide = as_doubles(l, n * n);
        check_factor(wide, a, n, 1e-5);
        free(wide);
        free(pivots);
        free(l);
        free(a);
    }
    qk_blas_leave();
}

/* The last pivot is wrong, so that every tile before it is passed; at last it keeps a millionth of what stood there. */
static void what_is_not_positive_definite_enough_is_told(void) {
    qk_blas_enter();
    for (int64_t n = 40; n <= 300; n += 260)
        for (int kind = 0; kind < 4; kind++) {
            double *a = positive_definite(n);
            const double bad[] = {-1, 0, NAN};
            if (kind < 3) {
                a[n * n - 1] = bad[kind];
            } else {
                for (int64_t i = 0; i < n - 1; i++) a[(n - 1) * n + i] = a[i * n + n - 1] = a[i];
                a[n * n - 1] = a[0] * (1 + 1e-6);
            }
            float *l32 = as_floats(a, n * n), *alone = as_floats(a, n * n), *pivots = MEMORY(float, n);
            double *l = MEMORY(double, n * n);
            memcpy(l, a, (size_t)(n * n) * sizeof *l);
            bool positive[2];
            CHECK(factor(l, l32, n, 1e-5, 2, positive) == QK_OK);
            CHECK(!positive[0] && !positive[1]);
            CHECK(!qk_cholesky_alone_f32(alone, n, 1e-5, pivots));
            if (kind == 3) {
                memcpy(l, a, (size_t)(n * n) * sizeof *l);
                float *again = as_floats(a, n * n);
                CHECK(factor(l, again, n, 1e-9, 2, positive) == QK_OK && positive[0]);
                check_factor(l, a, n, 1e-12);
                free(again);
            }
            free(l);
            free(pivots);
            free(alone);
            free(l32);
            free(a);
        }
    qk_blas_leave();
}

static bool at_once(void *user) {
    (void)user;
    return true;
}

static void it_may_be_cancelled(void) {
    const int64_t n = 300;
    qk_pool *pool = qk_pool_new(2);
    qk_run run = {.pool = pool, .cancelled = at_once, .asked = 1}; /* long ago */
    double *a = positive_definite(n);
    bool positive;
    qk_blas_enter();
    CHECK(qk_cholesky_tiled_f64(a, n, 0, &run, &positive) == QK_E_CANCELLED);
    qk_blas_leave();
    free(a);
    qk_pool_free(pool);
}

static qk_status factor_of_some(void *context) {
    const int64_t n = 70;
    double *a = positive_definite(n);
    bool positive;
    const qk_status status = qk_cholesky_tiled_f64(a, n, 0, context, &positive);
    free(a);
    return status;
}

static void refused_memory_is_told(void) {
    qk_pool *pool = qk_pool_new(1);
    qk_run run = {.pool = pool};
    qk_blas_enter();
    qk_refuse_each_allocation(factor_of_some, &run);
    qk_blas_leave();
    qk_pool_free(pool);
}

QK_TESTS(QK_TEST(the_factor_is_found_whatever_the_number_of_threads), QK_TEST(alone_it_is_a_factor_too),
         QK_TEST(what_is_not_positive_definite_enough_is_told), QK_TEST(it_may_be_cancelled),
         QK_TEST(refused_memory_is_told))
