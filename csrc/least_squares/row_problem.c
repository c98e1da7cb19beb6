/* Integers from rows (the dual form): every product is with the rows X, K x N, so that cost and memory follow N K where
 * moments take K K. What is kept up to date is the error of each row, r = w X - y, from which the slope of any input is
 * r x'. All errors are changes from the start or of the size of the error itself, in float32. */
#include "least_squares/row_problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "least_squares/row_descent.h"
#include "least_squares/row_gptq.h"
#include "least_squares/row_state.h"
#include "ops/quantized_weight.h"

enum {
    BLOCK = QK_COLUMN_BLOCK,
    FACTOR_BYTES = 64 << 20, /* of all factors that are kept for further batches */
};

static int64_t most_chunks(const qk_row_state *p) { return qk_larger(qk_row_chunks(p, 0), qk_row_chunks(p, 1)); }

static qk_status begin(qk_problem *problem, const qk_batch *batch, double *const error[2]) {
    qk_row_state *p = (qk_row_state *)problem;
    p->batch = batch;
    p->rounded = false;
    for (int set = 0; set < 2; set++) {
        QK_TRY(qk_row_errors(p, (qk_row_product){.p = p, .set = set, .weights = batch->w0, .to = p->error[set]}));
        for (int64_t line = 0; line < batch->lines; line++) {
            const float *r = p->error[set] + line * p->set[set].width;
            error[set][line] = qk_kernels_get()->exact_product(r, r, (size_t)p->set[set].rows);
        }
    }
    return qk_row_errors(p,
                         (qk_row_product){.p = p, .weights = p->start->weight, .by_row = true, .to = p->float_error});
}

static qk_status find_factor(qk_row_state *p, double damping) {
    const qk_row_set *s = &p->set[QK_FITTED];
    const double fit = FACTOR_BYTES / qk_row_factor_bytes(s);
    const int most = fit < 1 ? 1 : fit < QK_ROW_FACTORS ? (int)fit : QK_ROW_FACTORS;
    for (int i = 0; i < p->factors; i++)
        if (p->factor[i].damping == damping) {
            p->damped = &p->factor[i];
            return QK_OK;
        }
    if (!p->gram) {
        p->gram = QK_NEW(double, s->groups, s->width, s->width);
        if (!p->gram) return QK_E_NOMEM;
        QK_TRY(qk_row_gram(s, p->gram, &p->base.run));
    }
    if (p->factors == most)
        p->next = (p->next + 1) % most;
    else
        p->next = p->factors++;
    qk_row_factor *f = &p->factor[p->next];
    qk_row_factor_destroy(f);
    const qk_status status = qk_row_factor_new(f, s, p->gram, p->lam, &p->base.run);
    f->damping = status == QK_OK ? damping : NAN; /* half of one is never found */
    p->damped = f;
    return status;
}

static qk_status damp(qk_problem *problem, double damping, bool rounds) {
    qk_row_state *p = (qk_row_state *)problem;
    for (int64_t g = 0; g < p->base.groups; g++) p->lam[g] = damping * p->trace[g] / (double)p->base.inputs;
    p->rounded = false;
    p->damped = NULL;
    return rounds ? find_factor(p, damping) : QK_OK;
}

/* Sum of (a - b) (a + b), b the errors at the start. */
static double gained(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)((a[i] - b[i]) * (a[i] + b[i]));
    return sum;
}

static void judge_task(void *context, int64_t task, int worker) {
    const qk_row_job *job = context;
    qk_row_state *p = job->p;
    const qk_row_set *s = &p->set[QK_HELD_OUT];
    const int64_t K = s->inputs, w = s->width, chunks = qk_row_chunks(p, QK_HELD_OUT),
                  begin = task % chunks * QK_ROW_CHUNK;
    const int64_t n = qk_smaller(QK_ROW_CHUNK, w - begin);
    const qk_batch_part *piece = &p->batch->piece[task / chunks];
    float *made = p->scratch + worker * p->scratch_size;
    qk_sgemm(made, p->change + piece->line * K, s->x + piece->rows.group * K * w + begin,
             (qk_gemm_shape){.m = piece->rows.count, .n = n, .k = K, .lda = K, .ldb = w, .ldc = n});
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const float *r = p->error[QK_HELD_OUT] + (piece->line + i) * w + begin;
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += (double)(made[i * n + j] * (made[i * n + j] + 2 * r[j]));
        p->partial[(piece->line + i) * most_chunks(p) + task % chunks] = sum;
    }
}

static qk_status judge(qk_problem *problem, qk_set set, const float *q, double *change) {
    qk_row_state *p = (qk_row_state *)problem;
    const qk_row_set *s = &p->set[set];
    qk_row_job job = {.p = p, .q = (float *)q}; /* is not changed */
    if (set == QK_FITTED) {
        for (int64_t line = 0; line < p->batch->lines; line++)
            change[line] = gained(p->present + line * s->width, p->error[set] + line * s->width, s->rows);
        return QK_OK;
    }
    QK_TRY(qk_row_changes(&job));
    QK_TRY(qk_run_tasks(&p->base.run, judge_task, &job, p->batch->pieces * qk_row_chunks(p, set)));
    for (int64_t line = 0; line < p->batch->lines; line++) {
        change[line] = 0;
        for (int64_t i = 0; i < qk_row_chunks(p, set); i++) change[line] += p->partial[line * most_chunks(p) + i];
    }
    return QK_OK;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static void destroy(qk_problem *problem) {
    qk_row_state *p = (qk_row_state *)problem;
    void *arrays[] = {p->squares,     p->trace,   p->lam,    p->gram,    p->error[0], p->error[1],
                      p->float_error, p->present, p->change, p->partial, p->scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    for (int i = 0; i < p->factors; i++) qk_row_factor_destroy(&p->factor[i]);
    for (int set = 0; set < 2; set++) qk_row_set_destroy(&p->set[set]);
    free(p);
}

static qk_status allocate(qk_row_state *p, int64_t blocks) {
    const int64_t K = p->base.inputs, lines = QK_PRODUCT(blocks, QK_LANES), w = p->set[QK_FITTED].width;
    p->scratch_size = qk_larger(qk_row_workspace_size(p), QK_PIECE * QK_ROW_CHUNK) / 2 * 2 + 2; /* of whole doubles */
    p->squares = QK_NEW(float, p->base.groups, K, BLOCK);
    p->trace = QK_NEW(double, p->base.groups);
    p->lam = QK_NEW(double, p->base.groups);
    p->error[QK_FITTED] = QK_NEW(float, lines, w);
    p->error[QK_HELD_OUT] = QK_NEW(float, lines, p->set[QK_HELD_OUT].width);
    p->float_error = QK_NEW(float, lines, w);
    p->present = QK_NEW(float, lines, w);
    p->change = QK_NEW(float, lines, K);
    p->partial = QK_NEW(double, lines, most_chunks(p));
    p->scratch = QK_NEW(float, qk_pool_threads(p->base.run.pool), p->scratch_size);
    const bool ok = p->squares && p->trace && p->lam && p->error[0] && p->error[1] && p->float_error && p->present &&
                    p->change && p->partial && p->scratch;
    return ok ? QK_OK : QK_E_NOMEM;
}

/* X_B' X_B of a block of inputs. */
static void square_task(void *context, int64_t task, int worker) {
    (void)worker;
    qk_row_state *p = context;
    const qk_row_set *s = &p->set[QK_FITTED];
    const int64_t blocks = qk_ceil_div(s->inputs, BLOCK), begin = task % blocks * BLOCK;
    const int64_t n = qk_smaller(BLOCK, s->inputs - begin), line = task / blocks * s->inputs + begin;
    const float *x = s->x + line * s->width;
    qk_sgemm(p->squares + line * BLOCK, x, x,
             (qk_gemm_shape){
                 .m = n, .n = n, .k = s->width, .lda = s->width, .ldb = s->width, .ldc = BLOCK, .b_transposed = true});
}

static qk_status set_up(qk_row_state *p, const qk_layer *layer, int64_t blocks) {
    for (int set = 0; set < 2; set++) {
        const qk_row_source source = {.layer = layer,
                                      .set = (qk_set)set,
                                      .fixes_bias = set == QK_FITTED && !p->bias_free,
                                      .weight = p->start->weight,
                                      .bias = p->start->bias};
        QK_TRY(qk_row_set_new(&p->set[set], &source, &p->base.run));
        p->base.mean_x[set] = p->set[set].mean_x;
        p->base.mean_y[set] = p->set[set].mean_y;
        p->base.power[set] = p->set[set].power;
    }
    QK_TRY(allocate(p, blocks));
    QK_TRY(qk_run_tasks(&p->base.run, square_task, p, p->base.groups * qk_ceil_div(p->base.inputs, BLOCK)));
    for (int64_t k = 0; k < p->base.groups * p->base.inputs; k++)
        p->trace[k / p->base.inputs] += (double)p->squares[k * BLOCK + k % p->base.inputs % BLOCK];
    return QK_OK;
}

qk_status qk_row_problem_new(qk_problem **problem, const qk_layer *layer, const qk_quantized_layer *start,
                             bool bias_free, int64_t blocks, const qk_run *run) {
    static const qk_problem_operations operations = {begin, damp, qk_row_round, qk_row_descend, judge, destroy};
    const qk_geometry *g = qk_layer_geometry(layer);
    qk_row_state *p = QK_NEW(qk_row_state, 1);
    if (!p) return QK_E_NOMEM;
    p->base =
        (qk_problem){.does = &operations, .run = *run, .groups = g->groups, .inputs = g->inputs, .outputs = g->outputs};
    p->start = start;
    p->bias_free = bias_free;
    const qk_status status = set_up(p, layer, blocks);
    if (status == QK_OK)
        *problem = &p->base;
    else
        destroy(&p->base);
    return status;
}
