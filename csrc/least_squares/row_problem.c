/* Integers from rows (the dual form): every product is with the rows X, K x N, so that cost and memory follow N K where
 * moments take K K. What is kept up to date is the error of each row, r = w X - y, from which the slope of any input is
 * r x'. All errors are changes from the start or of the size of the error itself, in float32. */
#include "least_squares/row_problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "least_squares/row_factor.h"
#include "ops/quantized_weight.h"
#include "solvers/integer_rows.h"

enum {
    BLOCK = QK_COLUMN_BLOCK,
    ROWS = 256, /* rows of a task */
    FACTORS = 4,
    FACTOR_BYTES = 64 << 20, /* of all factors that are kept for further batches */
};

typedef struct {
    qk_problem base;
    const qk_quantized_layer *start;
    bool bias_free;
    const qk_batch *batch;
    qk_row_set set[2];
    float *squares; /* (groups * K, BLOCK): X_B' X_B of each block */
    double *trace;  /* (groups) */
    double *lam;    /* (groups) */
    double *gram;   /* (groups, width, width): X X' of the fitted set, once `round` is wanted */
    qk_row_factor factor[FACTORS];
    int factors, next;           /* those that there are; the one that a new damping replaces */
    const qk_row_factor *damped; /* of the present damping */
    float *error[2];             /* (lines, width): r at the start */
    float *float_error;          /* (lines, width): r of the float weight, of the fitted set */
    float *present;              /* (lines, width): r of the integers at hand, of the fitted set */
    float *change;               /* (lines, K): of the weights, from the start */
    double *partial;             /* (lines, chunks): sums over rows */
    float *scratch;              /* (threads, scratch_size) */
    int64_t scratch_size;
    bool rounded; /* q is what `round` set */
} row_problem;

static int64_t chunks_of(const row_problem *p, int set) { return qk_ceil_div(p->set[set].width, ROWS); }
static int64_t most_chunks(const row_problem *p) { return qk_larger(chunks_of(p, 0), chunks_of(p, 1)); }

typedef struct {
    row_problem *p;
    int set;
    const float *weights; /* (lines, K), or (groups * O, K) where by_row */
    bool by_row;
    const float *from; /* (lines, width) that is added; NULL: - y */
    float *to;         /* (lines, width) */
} product_job;

/* Task: of a piece and some rows, to = weights X + from. */
static void product_task(void *context, int64_t task, int worker) {
    (void)worker;
    const product_job *job = context;
    const row_problem *p = job->p;
    const qk_row_set *s = &p->set[job->set];
    const int64_t K = s->inputs, w = s->width, chunks = chunks_of(p, job->set), begin = task % chunks * ROWS;
    const qk_batch_part *piece = &p->batch->piece[task / chunks];
    const int64_t n = qk_smaller(ROWS, w - begin), at = piece->line * w + begin;
    const float *weights = job->weights + (job->by_row ? piece->rows.first : piece->line) * K;
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const float *y = s->y + (piece->rows.first + i) * w + begin;
        for (int64_t j = 0; j < n; j++) job->to[at + i * w + j] = job->from ? job->from[at + i * w + j] : -y[j];
    }
    qk_sgemm(job->to + at, weights, s->x + piece->rows.group * K * w + begin,
             (qk_gemm_shape){.m = piece->rows.count, .n = n, .k = K, .lda = K, .ldb = w, .ldc = w, .accumulate = true});
}

static qk_status find_errors(row_problem *p, product_job job) {
    return qk_run_tasks(&p->base.run, product_task, &job, p->batch->pieces * chunks_of(p, job.set));
}

static qk_status begin(qk_problem *problem, const qk_batch *batch, double *const error[2]) {
    row_problem *p = (row_problem *)problem;
    p->batch = batch;
    p->rounded = false;
    for (int set = 0; set < 2; set++) {
        QK_TRY(find_errors(p, (product_job){.p = p, .set = set, .weights = batch->w0, .to = p->error[set]}));
        for (int64_t line = 0; line < batch->lines; line++) {
            const float *r = p->error[set] + line * p->set[set].width;
            error[set][line] = qk_kernels_get()->exact_product(r, r, (size_t)p->set[set].rows);
        }
    }
    return find_errors(p, (product_job){.p = p, .weights = p->start->weight, .by_row = true, .to = p->float_error});
}

static qk_status find_factor(row_problem *p, double damping) {
    const qk_row_set *s = &p->set[QK_FITTED];
    const double fit = FACTOR_BYTES / qk_row_factor_bytes(s);
    const int most = fit < 1 ? 1 : fit < FACTORS ? (int)fit : FACTORS;
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
    row_problem *p = (row_problem *)problem;
    for (int64_t g = 0; g < p->base.groups; g++) p->lam[g] = damping * p->trace[g] / (double)p->base.inputs;
    p->rounded = false;
    p->damped = NULL;
    return rounds ? find_factor(p, damping) : QK_OK;
}

/* ---- GPTQ ------------------------------------------------------------------------------------ */

/* A worker's scratch, for a piece and a block of inputs. */
typedef struct {
    double *exact;                  /* (QK_PIECE, width): a */
    float *along;                   /* the same */
    float *target, *step;           /* (QK_PIECE, BLOCK): targets or slopes; errors or changes */
    int32_t *which, *moves;         /* (QK_PIECE, BLOCK), (QK_PIECE): which inputs changed, and how many */
    float *square;                  /* (BLOCK, BLOCK) */
    float *scale, *curvature;       /* (BLOCK) */
    float *lanes, *moved, *carried; /* (BLOCK, QK_LANES) */
    qk_lane_arrays arrays;
} workspace;

static int64_t scales_of(const row_problem *p) { return p->base.inputs / qk_scale_block(p->start, p->base.inputs); }

static int64_t workspace_size(const row_problem *p) {
    return 3 * QK_PIECE * p->set[QK_FITTED].width + 3 * QK_PIECE * BLOCK + QK_PIECE + BLOCK * BLOCK + 2 * BLOCK +
           3 * BLOCK * QK_LANES + qk_lane_arrays_size(BLOCK, scales_of(p));
}

static workspace workspace_of(const row_problem *p, int worker) {
    const int64_t w = p->set[QK_FITTED].width;
    float *at = p->scratch + worker * p->scratch_size;
    workspace s;
    s.exact = (double *)at; /* first, for its alignment */
    s.along = at + 2 * QK_PIECE * w;
    s.target = s.along + QK_PIECE * w;
    s.step = s.target + QK_PIECE * BLOCK;
    s.which = (int32_t *)(s.step + QK_PIECE * BLOCK);
    s.moves = s.which + QK_PIECE * BLOCK;
    s.square = (float *)(s.moves + QK_PIECE);
    s.scale = s.square + BLOCK * BLOCK;
    s.curvature = s.scale + BLOCK;
    s.lanes = s.curvature + BLOCK;
    s.moved = s.lanes + BLOCK * QK_LANES;
    s.carried = s.moved + BLOCK * QK_LANES;
    s.arrays = qk_lane_arrays_in(s.carried + BLOCK * QK_LANES, BLOCK, scales_of(p));
    return s;
}

static qk_lanes kernel_lanes(const row_problem *p, const workspace *s, int64_t first) {
    const qk_lane_arrays *a = &s->arrays;
    const int64_t scale_block = scales_of(p) > 1 ? p->start->scale_block : 0;
    return (qk_lanes){a->scale, a->zp, a->lo, a->hi, a->q, scale_block, first};
}

/* Between a block's lines (count, BLOCK) of a piece and lanes (n, QK_LANES). */
static void to_lanes(float *lanes, const float *lines, int64_t count, int64_t n) {
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < QK_LANES; i++) lanes[k * QK_LANES + i] = i < count ? lines[i * BLOCK + k] : 0;
}

static void to_lines(float *lines, const float *lanes, int64_t count, int64_t n) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; k < n; k++) lines[i * BLOCK + k] = lanes[k * QK_LANES + i];
}

typedef struct {
    row_problem *p;
    float *q;
} solve_job;

/* The blocks of a piece, which are neighbours. */
static int64_t first_block(const qk_batch *batch, const qk_batch_part *piece) {
    int64_t b = 0;
    while (batch->block[b].line != piece->line) b++;
    return b;
}

/* The inputs begin .. end - 1 of a piece: rounds its targets, s->target; the errors made become s->step. */
static void round_block(const solve_job *job, const qk_batch_part *piece, int64_t begin, int64_t end, const float *l,
                        const workspace *s) {
    const row_problem *p = job->p;
    const qk_batch *batch = p->batch;
    for (int64_t b = first_block(batch, piece), done = 0; done < piece->rows.count; b++) {
        const qk_batch_part *block = &batch->block[b];
        qk_lanes_from(batch, block, batch->q0, begin, end, s->arrays);
        to_lanes(s->lanes, s->target + done * BLOCK, block->rows.count, end - begin);
        memset(s->carried, 0, (size_t)(BLOCK * QK_LANES) * sizeof *s->carried);
        const qk_lanes lanes = kernel_lanes(p, s, begin);
        qk_kernels_get()->round_carrying(&lanes, s->lanes, l, BLOCK, s->carried, s->moved, (size_t)(end - begin));
        qk_lines_of(batch, block, s->arrays.q, begin, end, job->q);
        to_lines(s->step + done * BLOCK, s->moved, block->rows.count, end - begin);
        done += block->rows.count;
    }
}

/* The target of what is left is W + a X: a starts at - r M^-1 with r of the float weight, which is the shifted target
 * W*, and every block adds - d L T'. */
static void round_task(void *context, int64_t index, int worker) {
    const solve_job *job = context;
    row_problem *p = job->p;
    const qk_row_set *set = &p->set[QK_FITTED];
    const qk_row_factor *f = p->damped;
    const qk_batch_part *piece = &p->batch->piece[index];
    const int64_t K = set->inputs, w = set->width, count = piece->rows.count, group = piece->rows.group;
    const workspace s = workspace_of(p, worker);
    if (!f->sound[group]) return;
    for (int64_t i = 0; i < count * w; i++) s.exact[i] = -(double)p->float_error[piece->line * w + i];
    qk_cholesky_solve(s.exact, count, f->root + group * w * w, w);
    for (int64_t i = 0; i < count * w; i++) s.along[i] = (float)s.exact[i];
    for (int64_t end = K, begin; end > 0; end = begin) {
        begin = (end - 1) / BLOCK * BLOCK;
        const int64_t n = end - begin, line = group * K + begin;
        for (int64_t i = 0; i < count; i++)
            memcpy(s.target + i * BLOCK, p->start->weight + (piece->rows.first + i) * K + begin,
                   (size_t)n * sizeof *s.target);
        qk_sgemm(s.target, s.along, set->x + line * w,
                 (qk_gemm_shape){.m = count,
                                 .n = n,
                                 .k = w,
                                 .lda = w,
                                 .ldb = w,
                                 .ldc = BLOCK,
                                 .b_transposed = true,
                                 .accumulate = true});
        round_block(job, piece, begin, end, f->l + line * BLOCK, &s);
        if (begin == 0) break;
        qk_sgemm(s.target, s.step, f->l + line * BLOCK,
                 (qk_gemm_shape){.m = count, .n = n, .k = n, .lda = BLOCK, .ldb = BLOCK, .ldc = BLOCK});
        for (int64_t i = 0; i < count * BLOCK; i++) s.target[i] = -s.target[i];
        qk_sgemm(s.along, s.target, f->t + line * w,
                 (qk_gemm_shape){.m = count, .n = w, .k = n, .lda = BLOCK, .ldb = w, .ldc = w, .accumulate = true});
    }
}

static void set_to_start(const row_problem *p, float *q) {
    memcpy(q, p->batch->q0, (size_t)(p->batch->lines * p->base.inputs) * sizeof *q);
}

static qk_status solve_round(qk_problem *problem, float *q) {
    row_problem *p = (row_problem *)problem;
    solve_job job = {.p = p, .q = q};
    set_to_start(p, q);
    p->rounded = true;
    return qk_run_tasks(&p->base.run, round_task, &job, p->batch->pieces);
}

/* ---- coordinate descent ---------------------------------------------------------------------- */

/* change = scale (q - q0), for the lines of a block. */
static void change_task(void *context, int64_t index, int worker) {
    (void)worker;
    const solve_job *job = context;
    const row_problem *p = job->p;
    const qk_batch *batch = p->batch;
    const qk_batch_part *block = &batch->block[index];
    const int64_t K = batch->inputs, width = qk_scale_block(batch->start, K), at = block->line * K;
    const float *scale = batch->start->weight_scale + block->rows.first * (K / width);
    for (int64_t b = 0; b < block->rows.count * (K / width); b++)
        for (int64_t i = at + b * width; i < at + (b + 1) * width; i++)
            p->change[i] = scale[b] * (job->q[i] - batch->q0[i]);
}

/* present += step X of the inputs that moved, as many as `moves` in all. */
static void move_rows(const row_problem *p, const qk_batch_part *piece, int64_t begin, int64_t n, int64_t moves,
                      const workspace *s) {
    enum { PRODUCT_IS_FASTER = 8 }; /* times, per input */
    const qk_row_set *set = &p->set[QK_FITTED];
    const int64_t w = set->width, count = piece->rows.count;
    const float *x = set->x + (piece->rows.group * set->inputs + begin) * w;
    float *present = p->present + piece->line * w;
    if (moves * PRODUCT_IS_FASTER <= count * n) {
        for (int64_t i = 0; i < count; i++)
            qk_kernels_get()->add_lines(present + i * w, s->step + i * BLOCK, s->which + i * BLOCK, s->moves[i], x, w,
                                        (size_t)w);
        return;
    }
    memset(s->target, 0, (size_t)(count * BLOCK) * sizeof *s->target);
    for (int64_t i = 0; i < count; i++)
        for (int32_t m = 0; m < s->moves[i]; m++)
            s->target[i * BLOCK + s->which[i * BLOCK + m]] = s->step[i * BLOCK + m];
    qk_sgemm(present, s->target, x,
             (qk_gemm_shape){.m = count, .n = w, .k = n, .lda = BLOCK, .ldb = w, .ldc = w, .accumulate = true});
}

/* One pass over the inputs begin .. end - 1 of a piece. Whether any moved. */
static bool descend_block(const solve_job *job, const qk_batch_part *piece, int64_t begin, int64_t end,
                          const workspace *s) {
    const row_problem *p = job->p;
    const qk_batch *batch = p->batch;
    const qk_row_set *set = &p->set[QK_FITTED];
    const int64_t K = set->inputs, w = set->width, n = end - begin, at = piece->rows.group * K + begin;
    const float lam = (float)p->lam[piece->rows.group];
    int64_t moves = 0;
    for (int64_t i = 0; i < piece->rows.count; i++) { /* what lam adds to the slopes */
        const int64_t line = (piece->line + i) * K + begin;
        const float *weight = p->start->weight + (piece->rows.first + i) * K + begin;
        for (int64_t k = 0; k < n; k++)
            s->target[i * BLOCK + k] = lam * (batch->w0[line + k] + p->change[line + k] - weight[k]);
    }
    qk_sgemm(s->target, p->present + piece->line * w, set->x + at * w,
             (qk_gemm_shape){.m = piece->rows.count,
                             .n = n,
                             .k = w,
                             .lda = w,
                             .ldb = w,
                             .ldc = BLOCK,
                             .b_transposed = true,
                             .accumulate = true});
    memcpy(s->square, p->squares + at * BLOCK, (size_t)(n * BLOCK) * sizeof *s->square);
    for (int64_t k = 0; k < n; k++) s->curvature[k] = s->square[k * BLOCK + k] += lam;
    for (int64_t i = 0; i < piece->rows.count; i++) {
        const int64_t line = (piece->line + i) * K + begin;
        qk_line_scales(batch, piece->rows.first + i, begin, end, s->scale);
        const qk_line one = {s->scale,         s->curvature,  batch->lo + line,
                             batch->hi + line, job->q + line, s->target + i * BLOCK};
        s->moves[i] = qk_kernels_get()->descend_line(&one, s->square, BLOCK, s->which + i * BLOCK, s->step + i * BLOCK,
                                                     (size_t)n);
        for (int32_t m = 0; m < s->moves[i]; m++) p->change[line + s->which[i * BLOCK + m]] += s->step[i * BLOCK + m];
        moves += s->moves[i];
    }
    if (moves > 0) move_rows(p, piece, begin, n, moves, s);
    return moves > 0;
}

/* A sweep over a piece, if the one before moved anything in it. */
static void sweep_task(void *context, int64_t index, int worker) {
    const solve_job *job = context;
    const int64_t K = job->p->base.inputs;
    const workspace s = workspace_of(job->p, worker);
    bool any = false;
    for (int64_t at = 0; at < K && job->p->partial[index] != 0; at += BLOCK)
        any |= descend_block(job, &job->p->batch->piece[index], at, qk_smaller(at + BLOCK, K), &s);
    job->p->partial[index] = any;
}

static qk_status descend(qk_problem *problem, float *q, int max_sweeps) {
    row_problem *p = (row_problem *)problem;
    const int64_t size = p->batch->lines * p->set[QK_FITTED].width;
    solve_job job = {.p = p, .q = q};
    if (!p->rounded) set_to_start(p, q);
    QK_TRY(qk_run_tasks(&p->base.run, change_task, &job, p->batch->blocks));
    if (p->rounded)
        QK_TRY(
            find_errors(p, (product_job){.p = p, .weights = p->change, .from = p->error[QK_FITTED], .to = p->present}));
    else
        memcpy(p->present, p->error[QK_FITTED], (size_t)size * sizeof *p->present);
    p->rounded = false;
    bool any = true;
    for (int64_t i = 0; i < p->batch->pieces; i++) p->partial[i] = 1;
    for (int sweep = 0; sweep < max_sweeps && any; sweep++) {
        QK_TRY(qk_run_tasks(&p->base.run, sweep_task, &job, p->batch->pieces));
        any = false;
        for (int64_t i = 0; i < p->batch->pieces; i++) any |= p->partial[i] != 0;
    }
    return QK_OK;
}

/* Sum of (a - b) (a + b), b the errors at the start. */
static double gained(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)((a[i] - b[i]) * (a[i] + b[i]));
    return sum;
}

static void judge_task(void *context, int64_t task, int worker) {
    const solve_job *job = context;
    row_problem *p = job->p;
    const qk_row_set *s = &p->set[QK_HELD_OUT];
    const int64_t K = s->inputs, w = s->width, chunks = chunks_of(p, QK_HELD_OUT), begin = task % chunks * ROWS;
    const int64_t n = qk_smaller(ROWS, w - begin);
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
    row_problem *p = (row_problem *)problem;
    const qk_row_set *s = &p->set[set];
    solve_job job = {.p = p, .q = (float *)q}; /* is not changed */
    if (set == QK_FITTED) {
        for (int64_t line = 0; line < p->batch->lines; line++)
            change[line] = gained(p->present + line * s->width, p->error[set] + line * s->width, s->rows);
        return QK_OK;
    }
    QK_TRY(qk_run_tasks(&p->base.run, change_task, &job, p->batch->blocks));
    QK_TRY(qk_run_tasks(&p->base.run, judge_task, &job, p->batch->pieces * chunks_of(p, set)));
    for (int64_t line = 0; line < p->batch->lines; line++) {
        change[line] = 0;
        for (int64_t i = 0; i < chunks_of(p, set); i++) change[line] += p->partial[line * most_chunks(p) + i];
    }
    return QK_OK;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static void destroy(qk_problem *problem) {
    row_problem *p = (row_problem *)problem;
    void *arrays[] = {p->squares,     p->trace,   p->lam,    p->gram,    p->error[0], p->error[1],
                      p->float_error, p->present, p->change, p->partial, p->scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    for (int i = 0; i < p->factors; i++) qk_row_factor_destroy(&p->factor[i]);
    for (int set = 0; set < 2; set++) qk_row_set_destroy(&p->set[set]);
    free(p);
}

static qk_status allocate(row_problem *p, int64_t blocks) {
    const int64_t K = p->base.inputs, lines = QK_PRODUCT(blocks, QK_LANES), w = p->set[QK_FITTED].width;
    p->scratch_size = qk_larger(workspace_size(p), QK_PIECE * ROWS) / 2 * 2 + 2; /* of whole doubles */
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
    row_problem *p = context;
    const qk_row_set *s = &p->set[QK_FITTED];
    const int64_t blocks = qk_ceil_div(s->inputs, BLOCK), begin = task % blocks * BLOCK;
    const int64_t n = qk_smaller(BLOCK, s->inputs - begin), line = task / blocks * s->inputs + begin;
    const float *x = s->x + line * s->width;
    qk_sgemm(p->squares + line * BLOCK, x, x,
             (qk_gemm_shape){
                 .m = n, .n = n, .k = s->width, .lda = s->width, .ldb = s->width, .ldc = BLOCK, .b_transposed = true});
}

static qk_status set_up(row_problem *p, const qk_layer *layer, int64_t blocks) {
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
    static const qk_problem_operations operations = {begin, damp, solve_round, descend, judge, destroy};
    const qk_geometry *g = qk_layer_geometry(layer);
    row_problem *p = QK_NEW(row_problem, 1);
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
