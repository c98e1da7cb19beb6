#define _POSIX_C_SOURCE 200809L
#include "base/pool.h"

#include <time.h>

#include "qk_test.h"

typedef struct {
    int64_t count;
    int threads;
    atomic_int *runs;               /* (count) of each task */
    atomic_int wrong_worker, *busy; /* (threads): a worker runs one task at a time */
} tally;

static void count_task(void *context, int64_t task, int worker) {
    tally *t = context;
    if (task < 0 || task >= t->count || worker < 0 || worker >= t->threads) {
        atomic_fetch_add(&t->wrong_worker, 1);
        return;
    }
    if (atomic_fetch_add(&t->busy[worker], 1) != 0) atomic_fetch_add(&t->wrong_worker, 1);
    atomic_fetch_add(&t->runs[task], 1);
    atomic_fetch_sub(&t->busy[worker], 1);
}

static void check_every_task_runs_once(qk_pool *pool, int64_t count) {
    tally t = {.count = count, .threads = qk_pool_threads(pool)};
    t.runs = MEMORY(atomic_int, count);
    t.busy = MEMORY(atomic_int, t.threads);
    qk_pool_run(pool, count_task, &t, count);
    for (int64_t i = 0; i < count; i++) CHECK(t.runs[i] == 1);
    CHECK(t.wrong_worker == 0);
    free(t.runs);
    free(t.busy);
}

static void every_task_runs_once(void) {
    for (int threads = 1; threads <= 5; threads++) {
        qk_pool *pool = qk_pool_new(threads);
        CHECK(qk_pool_threads(pool) == threads);
        const int64_t counts[] = {0, 1, 2, 3, 64, 1000};
        for (int i = 0; i < 6; i++) check_every_task_runs_once(pool, counts[i]);
        qk_pool_free(pool);
    }
}

static void slow_task(void *context, int64_t task, int worker) {
    const struct timespec pause = {.tv_nsec = worker ? 3000000 : 1000000};
    nanosleep(&pause, NULL);
    ((atomic_int *)context)[task] = 1;
}

static void a_run_ends_with_its_slowest_task(void) {
    qk_pool *pool = qk_pool_new(3);
    atomic_int done[8] = {0};
    qk_pool_run(pool, slow_task, done, 8);
    for (int i = 0; i < 8; i++) CHECK(done[i] == 1);
    qk_pool_free(pool);
}

static void results_of_one_run_are_seen_by_the_next(void) {
    enum { N = 200 };
    qk_pool *pool = qk_pool_new(4);
    for (int i = 0; i < N; i++) check_every_task_runs_once(pool, i % 7);
    qk_pool_free(pool);
}

/* A processor that is busy elsewhere may not run a helper for long. */
static void helpers_that_do_not_come_are_not_waited_for(void) {
    pthread_mutex_lock(&qk_gate);
    qk_pool *pool = qk_pool_new(4);
    alarm(60); /* ends the program if the first run waits for them */
    for (int i = 0; i < 5; i++) check_every_task_runs_once(pool, 20);
    alarm(0);
    pthread_mutex_unlock(&qk_gate);
    for (int i = 0; i < 50; i++) check_every_task_runs_once(pool, 20); /* they come late, in the middle of one */
    qk_pool_free(pool);
}

typedef struct {
    atomic_int inside; /* tasks that have begun */
    atomic_bool late;
    atomic_int done;
} meeting;

/* Two tasks, each of which waits for the other: they end only if two threads run them. */
static void meet_task(void *context, int64_t task, int worker) {
    (void)task, (void)worker;
    meeting *m = context;
    const struct timespec pause = {.tv_nsec = 100000};
    atomic_fetch_add(&m->inside, 1);
    for (int i = 0; atomic_load(&m->inside) < 2; i++) {
        nanosleep(&pause, NULL);
        if (i > 200000) atomic_store(&m->late, true), atomic_store(&m->inside, 2);
    }
    atomic_fetch_add(&m->done, 1);
}

static void helpers_come_to_every_run(void) {
    qk_pool *pool = qk_pool_new(2);
    for (int run = 0; run < 200; run++) {
        meeting m = {0};
        qk_pool_run(pool, meet_task, &m, 2);
        CHECK(m.done == 2 && !m.late);
    }
    qk_pool_free(pool);
}

static void sum_task(void *context, int64_t task, int worker) {
    (void)worker;
    int64_t *sums = context;
    for (int i = 0; i < 100; i++) sums[task] += task + i;
}

static void *run_many(void *pool) {
    int64_t sums[50], wrong = 0;
    for (int run = 0; run < 50; run++) {
        memset(sums, 0, sizeof sums);
        qk_pool_run(pool, sum_task, sums, 50);
        for (int i = 0; i < 50; i++) wrong += sums[i] != 100 * i + 4950;
    }
    return wrong ? pool : NULL;
}

static void two_callers_may_share_a_pool(void) {
    qk_pool *pool = qk_pool_new(3);
    pthread_t other;
    void *other_result = pool;
    CHECK(pthread_create(&other, NULL, run_many, pool) == 0);
    CHECK(run_many(pool) == NULL);
    CHECK(pthread_join(other, &other_result) == 0);
    CHECK(other_result == NULL);
    qk_pool_free(pool);
}

static void a_system_without_threads_leaves_the_caller(void) {
    atomic_store(&qk_threads_refused, true);
    qk_pool *pool = qk_pool_new(4);
    atomic_store(&qk_threads_refused, false);
    CHECK(pool != NULL);
    check_every_task_runs_once(pool, 100);
    qk_pool_free(pool);
}

static bool use_and_free(void *pool) {
    qk_failures = 0;
    check_every_task_runs_once(pool, 100);
    qk_pool_keep_awake(pool, true);
    check_every_task_runs_once(pool, 3);
    qk_pool_free(pool);
    return qk_failures == 0;
}

static void a_child_can_use_and_free_a_pool(void) {
    qk_pool *pool = qk_pool_new(3);
    for (int i = 0; i < 20; i++) {
        check_every_task_runs_once(pool, 50);
        CHECK(qk_child_succeeds(use_and_free, pool));
    }
    check_every_task_runs_once(pool, 50);
    qk_pool_free(pool);
}

static void *run_for_ever(void *context) {
    qk_pool *pool = ((void **)context)[0];
    atomic_bool *stop = ((void **)context)[1];
    while (!atomic_load(stop)) run_many(pool);
    return NULL;
}

/* Whoever forks does not know what other threads are in the middle of. */
static void a_child_can_use_a_pool_that_another_thread_was_using(void) {
    qk_pool *pool = qk_pool_new(3);
    atomic_bool stop = false;
    void *context[] = {pool, &stop};
    pthread_t other;
    CHECK(pthread_create(&other, NULL, run_for_ever, context) == 0);
    for (int i = 0; i < 40; i++) CHECK(qk_child_succeeds(use_and_free, pool));
    atomic_store(&stop, true);
    pthread_join(other, NULL);
    qk_pool_free(pool);
}

static void bad_or_refused_pools_are_null(void) {
    CHECK(qk_pool_new(0) == NULL);
    CHECK(qk_pool_new(-1) == NULL);
    CHECK(qk_pool_new(QK_MOST_THREADS + 1) == NULL);
    for (long refused = 1; refused <= 2; refused++) { /* the pool itself, its list of threads */
        atomic_store(&qk_allocations, 0);
        atomic_store(&qk_refused, refused);
        qk_pool *pool = qk_pool_new(1);
        atomic_store(&qk_refused, 0);
        CHECK(pool == NULL);
        qk_pool_free(pool);
    }
}

QK_TESTS(QK_TEST(every_task_runs_once), QK_TEST(a_run_ends_with_its_slowest_task),
         QK_TEST(results_of_one_run_are_seen_by_the_next), QK_TEST(helpers_that_do_not_come_are_not_waited_for),
         QK_TEST(helpers_come_to_every_run), QK_TEST(two_callers_may_share_a_pool),
         QK_TEST(a_child_can_use_and_free_a_pool), QK_TEST(a_child_can_use_a_pool_that_another_thread_was_using),
         QK_TEST(a_system_without_threads_leaves_the_caller), QK_TEST(bad_or_refused_pools_are_null))
