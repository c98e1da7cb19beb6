#include "solvers/damped_factor.h"

#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/cholesky.h"
#include "base/memory.h"
#include "solvers/closest_point.h"

enum { KEPT_BYTES = 32 << 20 /* of factors beyond the first */, TILED_FROM = 256 /* inputs */ };

/* The least part of a diagonal number that its pivot may keep: below it float32 holds nothing but rounding. */
static const double LEAST_F32 = 1e-5, LEAST_F64 = 1e-14;

void qk_damped_factors_init(qk_damped_factors *f, int64_t groups, int64_t inputs) {
    const double bytes = (double)groups * (double)inputs * (double)inputs * sizeof(float);
    *f = (qk_damped_factors){.groups = groups, .inputs = inputs, .count = 1};
    while (f->count < QK_DAMPED_FACTORS && f->count * bytes <= KEPT_BYTES) f->count++;
}

static void factor_destroy(qk_damped_factor *factor) {
    void *arrays[] = {factor->known, factor->sound, factor->l, factor->exact};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

void qk_damped_factors_destroy(qk_damped_factors *f) {
    for (int i = 0; i < QK_DAMPED_FACTORS; i++) factor_destroy(&f->factor[i]);
}

static qk_status allocate(qk_damped_factor *factor, int64_t groups, int64_t inputs) {
    if (factor->l) return QK_OK;
    factor->known = QK_NEW(bool, groups);
    factor->sound = QK_NEW(bool, groups);
    factor->l = QK_NEW(float, groups, inputs, inputs);
    bool ok = factor->known && factor->sound && factor->l;
    if (inputs <= QK_FEW_INPUTS) ok &= (factor->exact = QK_NEW(double, groups, inputs, inputs)) != NULL;
    return ok ? QK_OK : QK_E_NOMEM;
}

typedef struct {
    qk_damped_factor *factor;
    const qk_damped_gram *of;
    const bool *wanted;
    int64_t inputs;
    float *pivots; /* (threads, K) */
    bool float64;  /* float32 was not enough */
} factor_job;

/* Lower triangle of a group's matrix in float64. */
static void copy_exact(const factor_job *job, int64_t group, double *to) {
    const int64_t K = job->inputs;
    const double *gram = job->of->moments->gram + group * K * K;
    const double *extra = job->of->extra ? job->of->extra + group * K : NULL;
    for (int64_t i = 0; i < K; i++) {
        for (int64_t j = 0; j <= i; j++) to[i * K + j] = gram[i * K + j] + (extra ? extra[i] * extra[j] : 0);
        to[i * K + i] += job->of->lam[group];
    }
}

static bool is_pending(const factor_job *job, int64_t group) {
    return job->wanted[group] && !job->factor->known[group];
}

static void round_factor(const factor_job *job, int64_t group, const double *exact) {
    const int64_t K = job->inputs;
    float *l = job->factor->l + group * K * K;
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = 0; j < K; j++) l[i * K + j] = j <= i ? (float)exact[i * K + j] : 0;
}

/* A group of few inputs: exact, as the closest point wants it. */
static void factor_few(const factor_job *job, int64_t group) {
    const int64_t K = job->inputs;
    double *exact = job->factor->exact + group * K * K;
    copy_exact(job, group, exact);
    job->factor->sound[group] = qk_cholesky(exact, K);
    if (job->factor->sound[group]) round_factor(job, group, exact);
}

static void factor_task(void *context, int64_t group, int worker) {
    const factor_job *job = context;
    const int64_t K = job->inputs;
    float *l = job->factor->l + group * K * K;
    if (!is_pending(job, group)) return;
    if (K <= QK_FEW_INPUTS) {
        factor_few(job, group);
        job->factor->known[group] = true;
        return;
    }
    memcpy(l, job->of->gram + group * K * K, (size_t)(K * K) * sizeof *l);
    job->factor->sound[group] = qk_cholesky_alone_f32(l, K, LEAST_F32, job->pivots + worker * K);
    job->factor->known[group] = job->factor->sound[group]; /* else float64 tries */
}

static qk_status factor_tiled(const factor_job *job, int64_t group, qk_run *run) {
    const int64_t K = job->inputs;
    float *l = job->factor->l + group * K * K;
    memcpy(l, job->of->gram + group * K * K, (size_t)(K * K) * sizeof *l);
    QK_TRY(qk_cholesky_tiled_f32(l, K, LEAST_F32, run, &job->factor->sound[group]));
    job->factor->known[group] = job->factor->sound[group];
    return QK_OK;
}

static qk_status factor_exactly(factor_job *job, int64_t group, qk_run *run) {
    job->float64 = true;
    double *exact = QK_NEW(double, job->inputs, job->inputs);
    if (!exact) return QK_E_NOMEM;
    copy_exact(job, group, exact);
    const qk_status status = qk_cholesky_tiled_f64(exact, job->inputs, LEAST_F64, run, &job->factor->sound[group]);
    if (status == QK_OK && job->factor->sound[group]) round_factor(job, group, exact);
    job->factor->known[group] = status == QK_OK;
    free(exact);
    return status;
}

static qk_status factor_all(factor_job *job, int64_t groups, qk_run *run) {
    if (job->inputs <= TILED_FROM) {
        job->pivots = QK_NEW(float, qk_pool_threads(run->pool), job->inputs);
        if (!job->pivots) return QK_E_NOMEM;
        const qk_status status = qk_run_tasks(run, factor_task, job, groups);
        free(job->pivots);
        QK_TRY(status);
    }
    for (int64_t group = 0; group < groups; group++) {
        if (is_pending(job, group) && job->inputs > TILED_FROM) QK_TRY(factor_tiled(job, group, run));
        if (is_pending(job, group)) QK_TRY(factor_exactly(job, group, run));
    }
    return QK_OK;
}

qk_status qk_damped_factors_get(qk_damped_factors *f, double damping, const qk_damped_gram *of, const bool *wanted,
                                qk_run *run, const qk_damped_factor **factor) {
    int at = 0;
    while (at < f->count && !(f->factor[at].l && f->factor[at].damping == damping)) at++;
    if (at == f->count) {
        at = f->next;
        f->next = (f->next + 1) % f->count;
        QK_TRY(allocate(&f->factor[at], f->groups, f->inputs));
        f->factor[at].damping = damping;
        memset(f->factor[at].known, 0, (size_t)f->groups * sizeof(bool));
    }
    factor_job job = {.factor = &f->factor[at], .of = of, .wanted = wanted, .inputs = f->inputs};
    *factor = &f->factor[at];
    const qk_status status = factor_all(&job, f->groups, run);
    f->float64 |= job.float64;
    return status;
}
