/* Least squares over the integers: candidates solved on the fitted moments, judged on the held-out ones.
 *
 * E |W^ x + b - y|^2 is quadratic in W^ and b, so moments replace the data. Each candidate damps the Gram matrix
 * differently (shrinking towards the float weight), rounds the shifted target W* = (C + lam W)(G + lam I)^-1
 * successively, with few inputs to the closest point, then descends by coordinates. Outputs are problems of their own:
 * for each the candidate that is best on held-out rows wins, the start included. Large layers try all candidates on a
 * part of the outputs, and only the best of them on the others.
 *
 * Moments, factors, targets and the errors that are reported are float64. Candidates are sought and compared in
 * float32, as changes from the start, which are of the size of the error itself. */
#include "solvers/least_squares.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "moments/layer.h"
#include "ops/quantized_weight.h"
#include "solvers/candidate.h"

enum {
    SLOT_BYTES = 32 << 20, /* of what several dampings at the same time take */
    PART = 4,              /* one of so many blocks */
    FINALISTS = 3,         /* candidates for the others */
};

/* A candidate with its damping. */
typedef struct {
    qk_candidate candidate;
    double damping;
    int order;
    double gain; /* of the blocks that it was tried on */
} attempt;

typedef enum { ALL_BLOCKS, A_PART, THE_REST } extent_of_trial;

/* ---- set-up ---------------------------------------------------------------------------------- */

static void damped_destroy(qk_damped *d) {
    void *arrays[] = {d->lam, d->gram, d->factored, d->factor, d->l, d->target};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static qk_status damped_allocate(qk_damped *d, const qk_quadratic *q) {
    const int64_t squares = q->groups * q->inputs * q->inputs;
    d->lam = QK_NEW(double, q->groups);
    d->gram = QK_NEW(float, squares);
    d->factored = QK_NEW(bool, q->groups);
    d->factor = QK_NEW(double, squares);
    d->l = QK_NEW(float, squares);
    d->target = QK_NEW(double, q->groups, q->outputs, q->inputs);
    return d->lam && d->gram && d->factored && d->factor && d->l && d->target ? QK_OK : QK_E_NOMEM;
}

static void trial_destroy(qk_trial *t) {
    free(t->q);
    free(t->bias_q);
    free(t->gain);
}

static qk_status trial_allocate(qk_trial *t, const qk_integer_solver *s) {
    t->q = QK_NEW(float, s->blocks, s->solving->inputs, QK_LANES);
    t->bias_q = QK_NEW(int32_t, s->rows);
    t->gain = QK_NEW(double, s->rows);
    return t->q && t->bias_q && t->gain ? QK_OK : QK_E_NOMEM;
}

static void solver_destroy(qk_integer_solver *s) {
    qk_quadratic_destroy(&s->fixed);
    for (int i = 0; i < s->slots && s->damped; i++) damped_destroy(&s->damped[i]);
    for (int i = 0; i < 2 * s->slots && s->trials; i++) trial_destroy(&s->trials[i]);
    void *arrays[] = {s->damped,  s->trials,      s->judge,       s->weight,    s->lo,    s->hi,
                      s->q0,      s->residual0,   s->slope,       s->best_q,    s->scale, s->zp,
                      s->winner,  s->bias_before, s->best_bias_q, s->best_gain, s->real,  s->scratch,
                      s->product, s->error[0],    s->error[1],    s->bias_after};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* How many dampings are tried side by side. */
static int slots_of(const qk_integer_solver *s) {
    const double squares = (double)s->solving->groups * (double)s->solving->inputs * (double)s->solving->inputs;
    const double fit = SLOT_BYTES / (squares * (2 * sizeof(float) + sizeof(double)));
    const int threads = qk_pool_threads(s->pool), dampings = s->options->damping_count;
    const int most = dampings < 1 ? 1 : threads < dampings ? threads : dampings;
    return fit < 1 ? 1 : fit < most ? (int)fit : most;
}

static qk_status solver_allocate(qk_integer_solver *s) {
    const int64_t K = s->solving->inputs, squares = s->solving->groups * K * K, threads = qk_pool_threads(s->pool);
    float **lanes[] = {&s->weight, &s->lo, &s->hi, &s->q0, &s->residual0, &s->slope, &s->best_q};
    double **by_row[] = {&s->bias_before, &s->bias_after, &s->best_gain, &s->error[0], &s->error[1]};
    bool ok = true;
    for (size_t i = 0; i < sizeof lanes / sizeof *lanes; i++)
        ok &= (*lanes[i] = QK_NEW(float, s->blocks, K, QK_LANES)) != NULL;
    for (size_t i = 0; i < sizeof by_row / sizeof *by_row; i++) ok &= (*by_row[i] = QK_NEW(double, s->rows)) != NULL;
    s->slots = slots_of(s);
    s->damped = QK_NEW(qk_damped, s->slots);
    s->trials = QK_NEW(qk_trial, 2, s->slots);
    for (int i = 0; i < s->slots && s->damped; i++) ok &= damped_allocate(&s->damped[i], s->solving) == QK_OK;
    for (int i = 0; i < 2 * s->slots && s->trials; i++) ok &= trial_allocate(&s->trials[i], s) == QK_OK;
    s->judge = QK_NEW(float, squares);
    s->scale = QK_NEW(float, s->blocks, s->scales, QK_LANES);
    s->zp = QK_NEW(float, s->blocks, s->scales, QK_LANES);
    s->best_bias_q = QK_NEW(int32_t, s->rows);
    s->winner = QK_NEW(qk_candidate, s->rows);
    s->scratch = QK_NEW(float, threads, QK_LANE_ARRAYS, K, QK_LANES);
    s->real = QK_NEW(double, threads, QK_ROW_BLOCK, K);
    s->product = QK_NEW(double, threads, QK_ROW_BLOCK, K);
    ok &= s->damped && s->trials && s->judge && s->scale && s->zp && s->best_bias_q && s->winner && s->scratch &&
          s->real && s->product;
    return ok ? QK_OK : QK_E_NOMEM;
}

/* One weight into its lane: float value, box, start. */
static void set_weight(const qk_integer_solver *s, int64_t row, int64_t k, int64_t at) {
    const qk_quantized_layer *l = s->start;
    const int64_t from = row * s->solving->inputs + k;
    s->weight[at] = l->weight[from];
    s->q0[at] = s->best_q[at] = (float)l->weight_q[from];
    if (s->options->box == QK_BOX_FREE) {
        s->lo[at] = (float)l->qmin;
        s->hi[at] = (float)l->qmax;
        return;
    }
    const int64_t scale = qk_scale_of(l, s->solving->inputs, from);
    const double floor_q = floor((double)(l->weight[from] / l->weight_scale[scale])) + l->weight_zp[scale];
    s->lo[at] = (float)qk_clip(floor_q, l->qmin, l->qmax);
    s->hi[at] = (float)qk_clip(floor_q + 1, l->qmin, l->qmax);
}

/* to (K, QK_LANES) = the lines of w G - c of a block, at the start w. */
static void slope_at_start(const qk_quadratic *q, qk_row_block block, const double *w, double *product, float *to) {
    const int64_t K = q->inputs;
    qk_dgemm(product, w, q->gram + block.group * K * K,
             (qk_gemm_shape){.m = block.count, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K});
    for (int64_t i = 0; i < block.count; i++)
        for (int64_t k = 0; k < K; k++)
            to[k * QK_LANES + i] = (float)(product[i * K + k] - q->cross[(block.first + i) * K + k]);
}

/* w (count, K) = scale (q - zero_point) of a block; q (rows, K). */
static void dequantize_rows(const qk_integer_solver *s, qk_row_block block, const int32_t *q, double *w) {
    const qk_quantized_layer *l = s->start;
    const int64_t K = s->solving->inputs;
    for (int64_t i = 0; i < block.count * K; i++) {
        const int64_t weight = block.first * K + i, scale = qk_scale_of(l, K, weight);
        w[i] = (double)l->weight_scale[scale] * (q[weight] - l->weight_zp[scale]);
    }
}

static void start_task(void *context, int64_t index, int worker) {
    qk_integer_solver *s = context;
    const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
    const qk_quantized_layer *l = s->start;
    const int64_t K = s->solving->inputs, at = index * K * QK_LANES;
    double *w = s->real + worker * QK_ROW_BLOCK * K, *product = s->product + worker * QK_ROW_BLOCK * K;
    float *scale = s->scale + index * s->scales * QK_LANES, *zp = s->zp + index * s->scales * QK_LANES;
    for (int64_t i = 0; i < s->scales * QK_LANES; i++) scale[i] = 1; /* of unused lanes */
    for (int64_t i = 0; i < block.count; i++) {
        const int64_t row = block.first + i;
        for (int64_t b = 0; b < s->scales; b++) {
            scale[b * QK_LANES + i] = l->weight_scale[row * s->scales + b];
            zp[b * QK_LANES + i] = (float)l->weight_zp[row * s->scales + b];
        }
        for (int64_t k = 0; k < K; k++) set_weight(s, row, k, at + k * QK_LANES + i);
    }
    dequantize_rows(s, block, l->weight_q, w);
    slope_at_start(s->solving, block, w, product, s->residual0 + at);
    slope_at_start(&s->moments[QK_HELD_OUT], block, w, product, s->slope + at);
}

static int32_t start_bias_q(const qk_integer_solver *s, int64_t row) {
    const qk_quantized_layer *l = s->start;
    return (int32_t)qk_clip(rint(s->bias_before[row] / l->bias_scale[row]), l->bias_qmin, l->bias_qmax);
}

static qk_status solver_init(qk_integer_solver *s) {
    const qk_quantized_layer *l = s->start;
    s->solving = &s->moments[QK_FITTED];
    QK_TRY(qk_quantized_layer_check(l, s->solving->groups * s->solving->outputs, s->solving->inputs));
    s->bias_free = s->options->update_bias && l->bias && l->bias_scale;
    if (!s->bias_free) {
        QK_TRY(qk_quadratic_copy(&s->fixed, &s->moments[QK_FITTED]));
        qk_quadratic_fix_bias(&s->fixed, l->bias);
        s->solving = &s->fixed;
    }
    s->rows = s->solving->groups * s->solving->outputs;
    s->blocks = qk_row_blocks(s->solving, QK_ROW_BLOCK);
    s->scales = s->solving->inputs / qk_scale_block(l, s->solving->inputs);
    QK_TRY(solver_allocate(s));
    const int64_t squares = s->solving->groups * s->solving->inputs * s->solving->inputs;
    for (int i = 0; i < s->slots; i++) qk_to_float(s->damped[i].gram, s->solving->gram, squares);
    qk_to_float(s->judge, s->moments[QK_HELD_OUT].gram, squares);
    for (int64_t r = 0; r < s->rows; r++) {
        s->bias_before[r] = l->bias ? l->bias[r] : 0;
        if (s->bias_free) s->best_bias_q[r] = start_bias_q(s, r);
    }
    qk_pool_run(s->pool, start_task, s, s->blocks);
    return QK_OK;
}

/* ---- candidates ------------------------------------------------------------------------------ */

static int64_t tried_blocks(const qk_integer_solver *s, extent_of_trial extent) {
    const int64_t part = qk_ceil_div(s->blocks, PART);
    return extent == ALL_BLOCKS ? s->blocks : extent == A_PART ? part : s->blocks - part;
}

/* Of the blocks that are tried, the i-th. */
static int64_t tried_block(extent_of_trial extent, int64_t i) {
    return extent == ALL_BLOCKS ? i : extent == A_PART ? i * PART : i + i / (PART - 1) + 1;
}

/* Trials that go on at the same time. First come those that need no factors, while these are made. */
typedef struct {
    qk_integer_solver *s;
    extent_of_trial extent;
    int dampings, trials;
    bool with_factors; /* the half that runs: factors and trials without them, or trials with them */
} wave;

static int64_t factor_tasks(const wave *w) { return w->with_factors ? 0 : w->dampings * w->s->solving->groups; }

static void wave_task(void *context, int64_t task, int worker) {
    const wave *w = context;
    const int64_t factors = factor_tasks(w), groups = w->s->solving->groups;
    if (task < factors) {
        qk_damped *damped = &w->s->damped[task / groups];
        if (damped->rounds) qk_factor(w->s, damped, task % groups);
        return;
    }
    const int64_t blocks = tried_blocks(w->s, w->extent);
    const qk_trial *trial = &w->s->trials[(task - factors) / blocks];
    if ((trial->candidate == QK_ROUNDING_DESCENT) == w->with_factors)
        qk_try_block(w->s, trial, tried_block(w->extent, (task - factors) % blocks), worker);
}

/* Takes over the outputs that a trial makes better on held-out rows. The change of all that get better. */
static double keep_better_rows(qk_integer_solver *s, extent_of_trial extent, const qk_trial *trial) {
    const int64_t n = s->solving->inputs * QK_LANES, tried = tried_blocks(s, extent);
    double gain = 0;
    for (int64_t t = 0; t < tried; t++) {
        const int64_t index = tried_block(extent, t);
        const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
        for (int64_t i = 0; i < block.count; i++) {
            const int64_t row = block.first + i;
            if (trial->gain[row] < 0) gain += trial->gain[row];
            if (!(trial->gain[row] < s->best_gain[row])) continue;
            s->best_gain[row] = trial->gain[row];
            s->best_bias_q[row] = trial->bias_q[row];
            s->winner[row] = trial->candidate;
            for (int64_t j = index * n + i; j < (index + 1) * n; j += QK_LANES) s->best_q[j] = trial->q[j];
        }
    }
    return gain;
}

/* Puts as many attempts into trials as there are slots for their dampings. */
static void start_wave(wave *w, const attempt *attempts, int count) {
    qk_integer_solver *s = w->s;
    w->dampings = w->trials = 0;
    for (; w->trials < count && w->trials < 2 * s->slots; w->trials++) {
        const attempt *a = &attempts[w->trials];
        int slot = 0;
        while (slot < w->dampings && s->damped[slot].damping != a->damping) slot++;
        if (slot == s->slots) break;
        if (slot == w->dampings) {
            s->damped[slot].damping = a->damping;
            s->damped[slot].rounds = false;
            qk_damp(s, &s->damped[slot]);
            w->dampings++;
        }
        s->damped[slot].rounds |= a->candidate == QK_ROUNDING_DESCENT;
        s->trials[w->trials].candidate = a->candidate;
        s->trials[w->trials].damped = &s->damped[slot];
    }
}

static bool cancelled(const qk_least_squares_options *o) { return o->cancelled && o->cancelled(o->user); }

static qk_status try_attempts(qk_integer_solver *s, extent_of_trial extent, attempt *attempts, int count) {
    wave w = {.s = s, .extent = extent};
    for (int done = 0; done < count; done += w.trials) {
        if (cancelled(s->options)) return QK_E_CANCELLED;
        start_wave(&w, attempts + done, count - done);
        for (int half = 0; half < 2; half++) {
            w.with_factors = half == 1;
            qk_pool_run(s->pool, wave_task, &w, factor_tasks(&w) + w.trials * tried_blocks(s, extent));
        }
        for (int i = 0; i < w.trials; i++) attempts[done + i].gain = keep_better_rows(s, extent, &s->trials[i]);
    }
    return QK_OK;
}

/* The best first; of equals the one that came first. */
static int by_gain(const void *left, const void *right) {
    const attempt *a = left, *b = right;
    if (a->gain != b->gain) return a->gain < b->gain ? -1 : 1;
    return a->order - b->order;
}

static qk_status try_all_dampings(qk_integer_solver *s) {
    const int ways = s->options->descends_only ? 1 : 2, count = ways * s->options->damping_count;
    attempt *attempts = QK_NEW(attempt, count);
    if (!attempts) return QK_E_NOMEM;
    for (int i = 0; i < count; i++)
        attempts[i] = (attempt){.candidate = i % ways ? QK_ROUNDING_DESCENT : QK_DESCENT,
                                .damping = s->options->damping[i / ways],
                                .order = i};
    const double work = (double)s->rows * (double)s->solving->inputs * (double)s->solving->inputs;
    const bool in_parts = work > (double)s->options->part_from && count > FINALISTS && s->blocks >= 2 * PART;
    qk_status status = try_attempts(s, in_parts ? A_PART : ALL_BLOCKS, attempts, count);
    if (in_parts && status == QK_OK) {
        qsort(attempts, (size_t)count, sizeof *attempts, by_gain);
        status = try_attempts(s, THE_REST, attempts, FINALISTS);
    }
    free(attempts);
    return status;
}

/* ---- the result ------------------------------------------------------------------------------ */

typedef struct {
    qk_integer_solver *s;
    const qk_least_squares_result *result;
    bool start; /* measure the start, else the result */
} measurement;

static void measure_task(void *context, int64_t index, int worker) {
    const measurement *m = context;
    qk_integer_solver *s = m->s;
    const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
    const int64_t K = s->solving->inputs;
    double *w = s->real + worker * QK_ROW_BLOCK * K;
    dequantize_rows(s, block, m->start ? s->start->weight_q : m->result->weight_q, w);
    for (int set = 0; set < 2; set++)
        qk_output_error(&s->moments[set], block, w, m->start ? s->bias_before : s->bias_after,
                        s->product + worker * QK_ROW_BLOCK * K, s->error[set]);
}

static double total(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* Errors of the start, or of the result. */
static void measure(qk_integer_solver *s, const qk_least_squares_result *result, bool start, double error[2]) {
    measurement m = {s, result, start};
    qk_pool_run(s->pool, measure_task, &m, s->blocks);
    for (int set = 0; set < 2; set++) error[set] = total(s->error[set], s->rows);
}

/* A bias that the start holds off its grid can win by the rounding alone: then nothing has changed. */
static bool is_as_it_was(const qk_integer_solver *s, const qk_least_squares_result *result, int64_t row) {
    const int64_t K = s->solving->inputs;
    const size_t size = (size_t)K * sizeof *result->weight_q;
    if (memcmp(result->weight_q + row * K, s->start->weight_q + row * K, size) != 0) return false;
    return !s->bias_free || s->best_bias_q[row] == start_bias_q(s, row);
}

static void hand_over(qk_integer_solver *s, qk_least_squares_result *result) {
    const int64_t K = s->solving->inputs;
    int64_t wins[QK_CANDIDATES] = {0};
    for (int64_t index = 0; index < s->blocks; index++) {
        const qk_row_block block = qk_row_block_at(s->solving, QK_ROW_BLOCK, index);
        for (int64_t j = 0; j < block.count * K; j++)
            result->weight_q[block.first * K + j] = (int32_t)s->best_q[(index * K + j % K) * QK_LANES + j / K];
    }
    for (int64_t r = 0; r < s->rows; r++) {
        if (is_as_it_was(s, result, r)) s->winner[r] = QK_START;
        wins[s->winner[r]]++;
        s->bias_after[r] = s->bias_before[r];
        if (!s->bias_free) continue;
        result->bias_q[r] = s->best_bias_q[r];
        if (s->winner[r] != QK_START) s->bias_after[r] = (double)s->start->bias_scale[r] * s->best_bias_q[r];
    }
    result->improved = s->rows - wins[QK_START];
    result->candidate = QK_START;
    for (int c = QK_START + 1; c < QK_CANDIDATES; c++)
        if (wins[c] > 0 && (result->candidate == QK_START || wins[c] > wins[result->candidate]))
            result->candidate = (qk_candidate)c;
    measure(s, result, false, result->after);
}

static qk_status try_candidates(qk_integer_solver *s, qk_least_squares_result *result) {
    const qk_least_squares_options *o = s->options;
    measure(s, NULL, true, result->before);
    for (int set = 0; set < 2; set++) {
        const qk_quadratic *q = &s->moments[set];
        result->power[set] = total(q->power, s->rows);
        for (int64_t r = 0; r < s->rows; r++) result->power[set] += q->mean_y[r] * q->mean_y[r];
    }
    attempt bias_only = {.candidate = QK_BIAS_ONLY};
    if (s->bias_free) QK_TRY(try_attempts(s, ALL_BLOCKS, &bias_only, 1));
    if (o->damping_count > 0) QK_TRY(try_all_dampings(s));
    hand_over(s, result);
    return QK_OK;
}

qk_status qk_least_squares_on(const qk_quadratic moments[2], const qk_quantized_layer *start,
                              const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    qk_integer_solver s = {
        .start = start, .options = options, .pool = pool, .moments = {moments[QK_FITTED], moments[QK_HELD_OUT]}};
    qk_blas_enter();
    qk_status status = solver_init(&s);
    if (status == QK_OK) status = try_candidates(&s, result);
    qk_blas_leave();
    solver_destroy(&s);
    return status;
}

qk_status qk_least_squares(const qk_layer *layer, const qk_quantized_layer *start,
                           const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    if (!layer->with_target && start->bias) return QK_E_ARG;
    qk_quadratic moments[2] = {0};
    qk_status status = QK_OK;
    qk_blas_enter();
    for (int set = 0; set < 2 && status == QK_OK; set++) {
        status = qk_quadratic_init(&moments[set], layer, (qk_set)set, layer->with_target);
        if (status == QK_OK && !layer->with_target) status = qk_quadratic_aim(&moments[set], start->weight);
        if (status == QK_OK) qk_quadratic_centre(&moments[set]);
    }
    if (status == QK_OK) status = qk_least_squares_on(moments, start, options, pool, result);
    qk_blas_leave();
    for (int set = 0; set < 2; set++) qk_quadratic_destroy(&moments[set]);
    return status;
}
