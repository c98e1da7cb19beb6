/* Work in many runs of a pool, which the caller may cancel in between. */
#ifndef QK_RUN_H
#define QK_RUN_H

#include "base/pool.h"

typedef struct {
    qk_pool *pool;
    bool (*cancelled)(void *user); /* called by the calling thread; may be NULL */
    void *user;
    double asked; /* when it was asked last, seconds */
} qk_run;

/* qk_pool_run, unless the caller wants no more: QK_E_CANCELLED. It is asked ten times a second at most, as the answer
 * may have to wait for Python's lock. */
qk_status qk_run_tasks(qk_run *run, qk_task task, void *context, int64_t count);

#endif
