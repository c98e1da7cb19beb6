#include "least_squares/row_factor.h"

#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "solvers/integer_rows.h"

enum {
    BLOCK = QK_COLUMN_BLOCK,
    STRIP = 128,  /* rows of a task */
    INPUTS = 256, /* of a product for X X' */
};

static void to_double(double *to, int64_t ld_to, const float *from, int64_t ld_from, int64_t lines, int64_t n) {
    for (int64_t i = 0; i < lines; i++)
        for (int64_t j = 0; j < n; j++) to[i * ld_to + j] = from[i * ld_from + j];
}

/* ---- X X' ------------------------------------------------------------------------------------ */

typedef struct {
    const qk_row_set *s;
    double *gram, *scratch; /* scratch (threads, 2, INPUTS, STRIP) */
    int64_t strips;
} gram_job;

/* A tile below the diagonal or on it. */
static void gram_task(void *context, int64_t task, int worker) {
    const gram_job *job = context;
    const qk_row_set *s = job->s;
    const int64_t strips = job->strips, group = task / (strips * strips), i0 = task / strips % strips * STRIP;
    const int64_t j0 = task % strips * STRIP, K = s->inputs, w = s->width;
    const int64_t m = qk_smaller(STRIP, w - i0), n = qk_smaller(STRIP, w - j0);
    double *a = job->scratch + worker * 2 * INPUTS * STRIP, *b = a + INPUTS * STRIP;
    if (j0 > i0) return;
    for (int64_t k = 0; k < K; k += INPUTS) {
        const int64_t count = qk_smaller(INPUTS, K - k);
        const float *x = s->x + (group * K + k) * w;
        to_double(a, STRIP, x + i0, w, count, m);
        to_double(b, STRIP, x + j0, w, count, n);
        qk_dgemm(job->gram + (group * w + i0) * w + j0, a, b,
                 (qk_gemm_shape){.m = m,
                                 .n = n,
                                 .k = count,
                                 .lda = STRIP,
                                 .ldb = STRIP,
                                 .ldc = w,
                                 .a_transposed = true,
                                 .accumulate = k > 0});
    }
}

qk_status qk_row_gram(const qk_row_set *s, double *gram, qk_run *run) {
    gram_job job = {.s = s, .gram = gram, .strips = qk_ceil_div(s->width, STRIP)};
    job.scratch = QK_NEW(double, qk_pool_threads(run->pool), 2, INPUTS, STRIP);
    if (!job.scratch) return QK_E_NOMEM;
    const qk_status status = qk_run_tasks(run, gram_task, &job, s->groups * job.strips * job.strips);
    free(job.scratch);
    return status;
}

/* ---- the factor of one group ----------------------------------------------------------------- */

typedef struct {
    const qk_row_set *s;
    const double *root; /* (width, width) */
    double *inverse;    /* (width, width): M^-1 */
    double *x, *v, *t;  /* (BLOCK, width): X_B', V', T' */
    double l[BLOCK * BLOCK];
    int64_t count; /* inputs of the block */
    bool sound;
} elimination;

static void invert_task(void *context, int64_t task, int worker) {
    (void)worker;
    const elimination *e = context;
    const int64_t w = e->s->width, first = task * STRIP, n = qk_smaller(STRIP, w - first);
    double *lines = e->inverse + first * w;
    memset(lines, 0, (size_t)(n * w) * sizeof *lines);
    for (int64_t i = 0; i < n; i++) lines[i * w + first + i] = 1;
    qk_cholesky_solve(lines, n, e->root, w);
}

/* V' = X_B' M^-1, of some rows. M^-1 is symmetric; right of its diagonal tiles it is not kept up to date. */
static void project_task(void *context, int64_t task, int worker) {
    (void)worker;
    const elimination *e = context;
    const int64_t w = e->s->width, first = task * STRIP, n = qk_smaller(STRIP, w - first);
    double *lines = e->inverse + first * w;
    qk_dgemm(e->v + first, e->x + first, lines + first,
             (qk_gemm_shape){.m = e->count, .n = n, .k = w - first, .lda = w, .ldb = w, .ldc = w});
    if (first == 0) return;
    qk_dgemm(
        e->v + first, e->x, lines,
        (qk_gemm_shape){
            .m = e->count, .n = n, .k = first, .lda = w, .ldb = w, .ldc = w, .b_transposed = true, .accumulate = true});
}

/* L from S, in one task: it is small. */
static void block_task(void *context, int64_t task, int worker) {
    (void)task;
    (void)worker;
    elimination *e = context;
    const int64_t n = e->count, w = e->s->width;
    double s[BLOCK * BLOCK];
    qk_dgemm(s, e->v, e->x,
             (qk_gemm_shape){.m = n, .n = n, .k = w, .lda = w, .ldb = w, .ldc = n, .b_transposed = true});
    for (int64_t i = 0; i < n * n; i++) s[i] = (i % (n + 1) == 0) - s[i];
    memset(e->l, 0, sizeof e->l);
    for (int64_t i = 0; i < n; i++) e->l[i * n + i] = 1;
    e->sound = qk_cholesky(s, n);
    if (!e->sound) return;
    qk_cholesky_solve(e->l, n, s, n);
    e->sound = qk_cholesky(e->l, n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) e->l[i * n + j] = 0;
}

/* T' = L' V', of some rows. */
static void turn_task(void *context, int64_t task, int worker) {
    (void)worker;
    const elimination *e = context;
    const int64_t w = e->s->width, first = task * STRIP, n = qk_smaller(STRIP, w - first);
    qk_dgemm(e->t + first, e->l, e->v + first,
             (qk_gemm_shape){
                 .m = e->count, .n = n, .k = e->count, .lda = e->count, .ldb = w, .ldc = w, .a_transposed = true});
}

/* M^-1 += T T', some lines, up to the diagonal tile. */
static void remove_task(void *context, int64_t task, int worker) {
    (void)worker;
    const elimination *e = context;
    const int64_t w = e->s->width, first = task * STRIP, n = qk_smaller(STRIP, w - first);
    qk_dgemm(e->inverse + first * w, e->t + first, e->t,
             (qk_gemm_shape){.m = n,
                             .n = first + n,
                             .k = e->count,
                             .lda = w,
                             .ldb = w,
                             .ldc = w,
                             .a_transposed = true,
                             .accumulate = true});
}

static qk_status eliminate(elimination *e, qk_row_factor *f, int64_t group, qk_run *run) {
    const int64_t K = e->s->inputs, w = e->s->width, strips = qk_ceil_div(w, STRIP);
    QK_TRY(qk_run_tasks(run, invert_task, e, strips));
    for (int64_t block = qk_ceil_div(K, BLOCK) - 1; block >= 0 && e->sound; block--) {
        const int64_t begin = block * BLOCK, line = group * K + begin;
        e->count = qk_smaller(BLOCK, K - begin);
        to_double(e->x, w, e->s->x + line * w, w, e->count, w);
        QK_TRY(qk_run_tasks(run, project_task, e, strips));
        QK_TRY(qk_run_tasks(run, block_task, e, 1));
        for (int64_t i = 0; i < e->count; i++)
            for (int64_t j = 0; j < e->count; j++) f->l[(line + i) * BLOCK + j] = (float)e->l[i * e->count + j];
        if (block == 0) break; /* no input comes before it */
        QK_TRY(qk_run_tasks(run, turn_task, e, strips));
        QK_TRY(qk_run_tasks(run, remove_task, e, strips));
        for (int64_t i = 0; i < e->count * w; i++) f->t[line * w + i] = (float)e->t[i];
    }
    f->sound[group] = e->sound;
    return QK_OK;
}

static qk_status factorise(qk_row_factor *f, const qk_row_set *s, const double *gram, const double *lam, int64_t group,
                           qk_run *run) {
    const int64_t w = s->width;
    double *root = f->root + group * w * w, trace = 0;
    memcpy(root, gram + group * w * w, (size_t)(w * w) * sizeof *root);
    for (int64_t i = 0; i < w; i++) {
        trace += root[i * w + i];
        root[i * w + i] += lam[group];
    }
    if (!(trace > 0) || !(lam[group] > 0) || !qk_cholesky(root, w)) return QK_OK;
    elimination *e = QK_NEW(elimination, 1);
    if (!e) return QK_E_NOMEM;
    *e = (elimination){.s = s, .root = root, .sound = true};
    e->inverse = QK_NEW(double, w, w);
    e->x = QK_NEW(double, BLOCK, w);
    e->v = QK_NEW(double, BLOCK, w);
    e->t = QK_NEW(double, BLOCK, w);
    const qk_status status = e->inverse && e->x && e->v && e->t ? eliminate(e, f, group, run) : QK_E_NOMEM;
    free(e->inverse);
    free(e->x);
    free(e->v);
    free(e->t);
    free(e);
    return status;
}

qk_status qk_row_factor_new(qk_row_factor *f, const qk_row_set *s, const double *gram, const double *lam, qk_run *run) {
    *f = (qk_row_factor){.sound = QK_NEW(bool, s->groups),
                         .root = QK_NEW(double, s->groups, s->width, s->width),
                         .l = QK_NEW(float, s->groups, s->inputs, BLOCK),
                         .t = QK_NEW(float, s->groups, s->inputs, s->width)};
    if (!f->sound || !f->root || !f->l || !f->t) return QK_E_NOMEM;
    for (int64_t group = 0; group < s->groups; group++) QK_TRY(factorise(f, s, gram, lam, group, run));
    return QK_OK;
}

void qk_row_factor_destroy(qk_row_factor *f) {
    free(f->sound);
    free(f->root);
    free(f->l);
    free(f->t);
    *f = (qk_row_factor){0};
}

double qk_row_factor_bytes(const qk_row_set *s) {
    const double w = (double)s->width, K = (double)s->inputs;
    return (double)s->groups * (8 * w * w + 4 * K * BLOCK + 4 * K * w);
}
