#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include "base/run.h"

#include <time.h>

static const double BETWEEN_QUESTIONS = 0.1; /* seconds */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

qk_status qk_run_tasks(qk_run *run, qk_task task, void *context, int64_t count) {
    if (run->cancelled) {
        const double now = seconds();
        if (run->asked == 0) run->asked = now; /* who starts the work has asked */
        if (now - run->asked > BETWEEN_QUESTIONS) {
            run->asked = now;
            if (run->cancelled(run->user)) return QK_E_CANCELLED;
        }
    }
    qk_pool_run(run->pool, task, context, count);
    return QK_OK;
}
