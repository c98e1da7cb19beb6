/* Threads that share the tasks of a job; python/pool.c is its Python side. */
#include "base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/memory.h"

struct qk_pool {
    pid_t process; /* that has the helper threads; a child of fork() has none of them */
    int threads;   /* the caller is worker 0 */
    int started;   /* helper threads that exist */
    pthread_t *helpers;
    pthread_mutex_t run_lock; /* one run at a time: two Python threads may share a pool */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    qk_task task;
    void *context;
    int64_t count;
    atomic_llong next;
    atomic_ullong generation; /* of the current run */
    atomic_bool open;         /* the current run still takes helpers */
    atomic_int busy;          /* helpers at work on it */
    bool stop;
    atomic_bool awake; /* who waits looks again for a while before it sleeps */
};

enum { LOOKS = 4000 }; /* about 50 microseconds, the price of being woken up */

static void pause_a_moment(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_ia32_pause();
#endif
}

typedef struct {
    qk_pool *pool;
    int worker;
} helper_argument;

static void drain(qk_pool *pool, int worker) {
    long long i;
    while ((i = atomic_fetch_add(&pool->next, 1)) < pool->count) pool->task(pool->context, i, worker);
}

static bool is_there_a_run(qk_pool *pool, uint64_t seen) {
    return atomic_load(&pool->open) && atomic_load(&pool->generation) != seen;
}

/* Whether a new run came while an awake pool looked for it. Takes and leaves the lock held. */
static bool await_run(qk_pool *pool, uint64_t seen) {
    if (!atomic_load(&pool->awake)) return false;
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < LOOKS && !is_there_a_run(pool, seen); i++) pause_a_moment();
    pthread_mutex_lock(&pool->lock);
    return is_there_a_run(pool, seen);
}

static void *help(void *argument) {
    helper_argument self = *(helper_argument *)argument;
    free(argument);
    qk_pool *pool = self.pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->stop && !is_there_a_run(pool, seen))
            if (!await_run(pool, seen) && !pool->stop) pthread_cond_wait(&pool->wake, &pool->lock);
        if (pool->stop) break;
        seen = pool->generation;
        pool->busy++;
        pthread_mutex_unlock(&pool->lock);
        drain(pool, self.worker);
        pthread_mutex_lock(&pool->lock);
        if (--pool->busy == 0) pthread_cond_signal(&pool->done);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

qk_pool *qk_pool_new(int threads) {
    if (threads < 1 || threads > QK_MOST_THREADS) return NULL;
    qk_pool *pool = QK_NEW(qk_pool, 1);
    if (!pool) return NULL;
    pool->process = getpid();
    pool->threads = threads;
    pthread_mutex_init(&pool->run_lock, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->helpers = QK_NEW(pthread_t, threads);
    if (!pool->helpers) {
        qk_pool_free(pool);
        return NULL;
    }
    /* A system that refuses another thread leaves a smaller pool: slower, same results. */
    for (int i = 1; i < threads; i++) {
        helper_argument *argument = QK_NEW(helper_argument, 1);
        if (!argument) break;
        *argument = (helper_argument){pool, i};
        if (pthread_create(&pool->helpers[pool->started], NULL, help, argument) != 0) {
            free(argument);
            break;
        }
        pool->started++;
    }
    return pool;
}

static bool is_of_a_parent(const qk_pool *pool) { return pool->process != getpid(); }

static void end_helpers(qk_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->helpers[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->run_lock);
}

void qk_pool_free(qk_pool *pool) {
    if (!pool) return;
    /* In a child there is nobody to join, and a thread of the parent may have held any of the locks for ever. */
    if (!is_of_a_parent(pool)) end_helpers(pool);
    free(pool->helpers);
    free(pool);
}

void qk_pool_keep_awake(qk_pool *pool, bool awake) { atomic_store(&pool->awake, awake); }

int qk_pool_threads(const qk_pool *pool) { return pool->threads; }

void qk_pool_run(qk_pool *pool, qk_task task, void *context, int64_t count) {
    if (count <= 0) return;
    if (is_of_a_parent(pool)) {
        for (int64_t i = 0; i < count; i++) task(context, i, 0);
        return;
    }
    pthread_mutex_lock(&pool->run_lock);
    pool->task = task;
    pool->context = context;
    pool->count = count;
    atomic_store(&pool->next, 0);
    bool shared = count > 1 && pool->started > 0;
    if (shared) {
        pthread_mutex_lock(&pool->lock);
        pool->open = true;
        pool->generation++;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
    drain(pool, 0);
    if (shared) { /* helpers that have not come by now are not waited for: the processor may be busy elsewhere */
        pthread_mutex_lock(&pool->lock);
        pool->open = false;
        if (atomic_load(&pool->awake)) {
            pthread_mutex_unlock(&pool->lock);
            for (int i = 0; i < LOOKS && atomic_load(&pool->busy) > 0; i++) pause_a_moment();
            pthread_mutex_lock(&pool->lock);
        }
        while (pool->busy > 0) pthread_cond_wait(&pool->done, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->run_lock);
}
