/* What the C tests share: checks, seeded data, and a calloc that can be told to fail. A program has one source file, so
 * this header may define functions. It lists its tests with QK_TESTS and prints "name: N passed, N failed". */
#ifndef QK_TEST_H
#define QK_TEST_H

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/random.h"
#include "qk.h"

#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* of a geometry: the last fields are 0 for most layers \
                                                               */

/* ---- checks ---------------------------------------------------------------------------------- */

static int qk_failures; /* of the test that runs */

static inline void qk_fail(const char *file, int line, const char *what) {
    enum { SHOWN = 5 };
    if (qk_failures++ < SHOWN) fprintf(stderr, "%s:%d: not true: %s\n", file, line, what);
}
#define CHECK(condition) ((condition) ? (void)0 : qk_fail(__FILE__, __LINE__, #condition))
/* |a - b| <= tolerance * max(1, |b|) */
#define CHECK_CLOSE(a, b, tolerance) CHECK(qk_close((a), (b), (tolerance)))
/* Bits must agree; one NaN equals another only bit for bit. */
#define CHECK_SAME(a, b, count) CHECK(memcmp((a), (b), (size_t)(count) * sizeof *(a)) == 0)

static inline bool qk_close(double a, double b, double tolerance) {
    return fabs(a - b) <= tolerance * fmax(1, fabs(b));
}

typedef struct {
    const char *name;
    void (*run)(void);
} qk_test;
#define QK_TEST(function) {#function, function}
#define QK_TESTS(...)                                                       \
    int main(void) {                                                        \
        static const qk_test tests[] = {__VA_ARGS__};                       \
        return qk_run_tests(__FILE__, tests, sizeof tests / sizeof *tests); \
    }

static inline int qk_run_tests(const char *file, const qk_test *tests, size_t count) {
    const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        qk_failures = 0;
        tests[i].run();
        if (qk_failures) {
            fprintf(stderr, "%s: %s FAILED (%d checks)\n", name, tests[i].name, qk_failures);
            failed++;
        }
    }
    printf("%.*s: %zu passed, %d failed\n", (int)strcspn(name, "."), name, count - (size_t)failed, failed);
    return failed > 0;
}

/* ---- fork ------------------------------------------------------------------------------------ */

/* Whether a child of this process, in which `work` runs, ends by itself within a minute, and `work` is true there. */
static inline bool qk_child_succeeds(bool (*work)(void *), void *context) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(work(context) ? 0 : 1);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ---- data ------------------------------------------------------------------------------------ */

/* Zeroed memory of the test itself: never refused by the calloc below. */
void *__real_calloc(size_t n, size_t size);
static inline void *qk_memory(int64_t n, size_t size) {
    void *memory = __real_calloc(n > 0 ? (size_t)n : 1, size);
    if (!memory) abort();
    return memory;
}
#define MEMORY(type, n) ((type *)qk_memory((int64_t)(n), sizeof(type)))

static inline double qk_uniform(qk_random *random, double lo, double hi) {
    return lo + (hi - lo) * (double)(qk_random_next(random) >> 11) * 0x1p-53;
}

static inline float *qk_floats(qk_random *random, int64_t n, float lo, float hi) {
    float *x = MEMORY(float, n);
    for (int64_t i = 0; i < n; i++) x[i] = (float)qk_uniform(random, lo, hi);
    return x;
}

/* ---- out of memory --------------------------------------------------------------------------- */

/* The linker sends the core's calls of calloc here (-Wl,--wrap=calloc). */
static atomic_long qk_allocations, qk_refused; /* the number of calls; the one that fails, 0: none */
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size) {
    return atomic_fetch_add(&qk_allocations, 1) + 1 == atomic_load(&qk_refused) ? NULL : __real_calloc(n, size);
}

/* And its calls of pthread_create here. */
static atomic_bool qk_threads_refused;
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument);
static pthread_mutex_t qk_gate = PTHREAD_MUTEX_INITIALIZER; /* threads start by passing it: who locks it holds them */
typedef struct {
    void *(*run)(void *);
    void *argument;
} qk_thread_start;
static inline void *qk_run_behind_gate(void *start) {
    const qk_thread_start s = *(qk_thread_start *)start;
    free(start);
    pthread_mutex_lock(&qk_gate);
    pthread_mutex_unlock(&qk_gate);
    return s.run(s.argument);
}
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    if (atomic_load(&qk_threads_refused)) return 11;
    qk_thread_start *start = MEMORY(qk_thread_start, 1);
    *start = (qk_thread_start){run, argument};
    const int status = __real_pthread_create(thread, attributes, qk_run_behind_gate, start);
    if (status != 0) free(start);
    return status;
}

/* Runs attempt with its first allocation refused, then its second, … until one run needs fewer: each but the last must
 * report QK_E_NOMEM. What it leaks, the sanitizers report. */
static inline void qk_refuse_each_allocation(qk_status (*attempt)(void *), void *context) {
    for (long refused = 1;; refused++) {
        atomic_store(&qk_allocations, 0);
        atomic_store(&qk_refused, refused);
        const qk_status status = attempt(context);
        atomic_store(&qk_refused, 0);
        if (atomic_load(&qk_allocations) < refused) {
            CHECK(status == QK_OK);
            CHECK(refused > 1); /* something was refused */
            return;
        }
        CHECK(status == QK_E_NOMEM);
    }
}

#endif
