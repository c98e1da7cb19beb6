/* A pool of threads for independent tasks. Which thread runs a task is not fixed, so a task may write
 * only what belongs to its number, or add integers under a lock; then results do not depend on the number of threads.
 */
#ifndef QK_POOL_H
#define QK_POOL_H

#include "qk.h"

/* worker: 0 .. threads - 1, for scratch memory. */
typedef void (*qk_task)(void *context, int64_t task, int worker);

/* Runs tasks 0 .. count - 1 and returns when all are done. Not reentrant: no task may call it. */
void qk_pool_run(qk_pool *pool, qk_task task, void *context, int64_t count);

/* Between many short runs, one soon after the other: threads then do not sleep at once. Off at first. */
void qk_pool_keep_awake(qk_pool *pool, bool awake);

#endif
