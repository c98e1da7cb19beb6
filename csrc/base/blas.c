#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "base/blas.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include <cblas.h>

#include "base/memory.h"

#ifdef BLAS_SYMBOL_PREFIX
#define QK_JOIN_(a, b) a##b
#define QK_JOIN(a, b) QK_JOIN_(a, b)
#define BLAS(name) QK_JOIN(BLAS_SYMBOL_PREFIX, name)
#else
#define BLAS(name) name
#endif

/* ---- sections and fork() --------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int open_sections, threads_outside;
static bool is_borrowed; /* OpenBLAS's thread count is our 1; threads_outside was there before */
static _Thread_local int own_sections;

/* A child of fork() has only the thread that called it. OpenBLAS holds locks of its own inside of a call, so a fork
 * waits until no other thread is in one; new calls wait for the fork. */
static atomic_int calls;
static atomic_bool is_forking;

static void before_fork(void) {
    pthread_mutex_lock(&lock);
    atomic_store(&is_forking, true);
    while (atomic_load(&calls) > 0) sched_yield();
}

static void after_fork(void) {
    atomic_store(&is_forking, false);
    pthread_mutex_unlock(&lock);
}

/* The sections of threads that do not exist here are over. OpenBLAS gets its thread count back by the next section, as
 * threads cannot be started yet. */
static void after_fork_in_child(void) {
    open_sections = own_sections;
    after_fork();
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

/* OpenBLAS takes a buffer for each call that runs beside others and keeps it for later ones. Where there is no memory
 * for it, OpenBLAS ends the process or asks for ever. So the room is tried out before, and calls take turns where there
 * is little: what one thread found, another may take, and glibc alone maps 128 MiB for a thread that allocates. */
enum {
    BUFFER_BYTES = 34 << 20, /* 32 MiB, and what aligns it */
    OTHERS_BYTES = 16 << 20, /* what others may take between the trial and the first call */
    THREAD_BYTES = BUFFER_BYTES + (128 << 20),
    PLENTY_BYTES = 512 << 20,
};
static atomic_int buffers; /* as many calls can run at the same time */

static bool has_room(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory != MAP_FAILED && munmap(memory, bytes) == 0;
}

static bool have_buffers(int count) {
    int known = atomic_load(&buffers);
    if (count <= known) return true;
    const bool is_alone = count == 1;
    if (!has_room(is_alone ? BUFFER_BYTES + OTHERS_BYTES : (size_t)count * THREAD_BYTES + PLENTY_BYTES))
        return is_alone; /* there is no other call to wait for */
    while (known < count && !atomic_compare_exchange_weak(&buffers, &known, count)) continue;
    return true;
}

static void begin_call(void) {
    for (;;) {
        const int count = atomic_fetch_add(&calls, 1) + 1;
        const bool forks = atomic_load(&is_forking);
        if (!forks && have_buffers(count)) return;
        atomic_fetch_sub(&calls, 1);
        if (forks) {
            pthread_mutex_lock(&lock); /* until the fork is over */
            pthread_mutex_unlock(&lock);
        } else {
            sched_yield();
        }
    }
}

static void end_call(void) { atomic_fetch_sub(&calls, 1); }

void qk_blas_enter(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&lock);
    own_sections++;
    open_sections++;
    if (!is_borrowed) {
        threads_outside = BLAS(openblas_get_num_threads)();
        if (threads_outside != 1) BLAS(openblas_set_num_threads)(1);
        is_borrowed = true;
    }
    pthread_mutex_unlock(&lock);
}

void qk_blas_leave(void) {
    pthread_mutex_lock(&lock);
    own_sections--;
    if (--open_sections == 0) {
        if (threads_outside != 1) BLAS(openblas_set_num_threads)(threads_outside);
        is_borrowed = false;
    }
    pthread_mutex_unlock(&lock);
}

const char *qk_blas_config(void) { return BLAS(openblas_get_config)(); }

/* ---- calls ----------------------------------------------------------------------------------- */

#define GEMM(function, c, a, b, s)                                                                         \
    do {                                                                                                   \
        begin_call();                                                                                      \
        BLAS(function)(CblasRowMajor, (s).a_transposed ? CblasTrans : CblasNoTrans,                        \
                       (s).b_transposed ? CblasTrans : CblasNoTrans, (int)(s).m, (int)(s).n, (int)(s).k,   \
                       (s).negative ? -1 : 1, a, (int)(s).lda, b, (int)(s).ldb, (s).accumulate ? 1 : 0, c, \
                       (int)(s).ldc);                                                                      \
        end_call();                                                                                        \
    } while (0)

void qk_sgemm(float *c, const float *a, const float *b, qk_gemm_shape s) { GEMM(cblas_sgemm, c, a, b, s); }
void qk_dgemm(double *c, const double *a, const double *b, qk_gemm_shape s) { GEMM(cblas_dgemm, c, a, b, s); }

#define TRSM(function, x, m, l, n, ldx, ldl)                                                                      \
    do {                                                                                                          \
        begin_call();                                                                                             \
        BLAS(function)(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)(m), (int)(n), 1, l, \
                       (int)(ldl), x, (int)(ldx));                                                                \
        end_call();                                                                                               \
    } while (0)

void qk_strsm(float *x, int64_t m, const float *l, int64_t n, int64_t ldx, int64_t ldl) {
    TRSM(cblas_strsm, x, m, l, n, ldx, ldl);
}
void qk_dtrsm(double *x, int64_t m, const double *l, int64_t n, int64_t ldx, int64_t ldl) {
    TRSM(cblas_dtrsm, x, m, l, n, ldx, ldl);
}

bool qk_blas_reserve(void) {
    enum { N = 192 }; /* smaller products do without a buffer */
    if (atomic_load(&buffers) > 0) return true;
    float *a = QK_NEW(float, 2, N, N);
    const bool ok = a && has_room(BUFFER_BYTES + OTHERS_BYTES);
    if (ok) {
        qk_blas_enter();
        qk_sgemm(a + N * N, a, a, (qk_gemm_shape){.m = N, .n = N, .k = N, .lda = N, .ldb = N, .ldc = N});
        qk_blas_leave();
    }
    free(a);
    return ok;
}

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
        begin_call();
        BLAS(cblas_dtrsm)(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)rest, (int)b, 1, diag,
                          (int)n, below, (int)n);
        BLAS(cblas_dsyrk)(CblasRowMajor, CblasLower, CblasNoTrans, (int)rest, (int)b, -1, below, (int)n, 1, below + b,
                          (int)n);
        end_call();
    }
    return true;
}

void qk_cholesky_solve(double *x, int64_t m, const double *l, int64_t n) {
    begin_call();
    BLAS(cblas_dtrsm)(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)m, (int)n, 1, l, (int)n, x,
                      (int)n);
    BLAS(cblas_dtrsm)(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)m, (int)n, 1, l, (int)n,
                      x, (int)n);
    end_call();
}
