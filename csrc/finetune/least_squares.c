/* Least squares over the integers: candidates solved on the fitted moments, judged on the held-out ones.
 *
 * E |W^ x + b - y|^2 is quadratic in W^ and b, so moments replace the data. Each candidate damps the Gram matrix
 * differently (shrinking towards the float weight), rounds the shifted target W* = (C + lam W)(G + lam I)^-1
 * successively, then descends by coordinates. Outputs are problems of their own: for each the candidate that is best on
 * held-out rows wins, the start included. */
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "finetune/integer_rows.h"
#include "finetune/quadratic.h"

typedef struct {
    const qk_quantized_layer *start;
    const qk_least_squares_options *options;
    qk_pool *pool;
    qk_quadratic raw[2];  /* fitted and held-out moments, as they are */
    qk_quadratic solving; /* fitted moments, centred or with the bias fixed, damped for the candidate at hand */
    double *gram_diagonal, *cross_undamped; /* of `solving`, to undo a damping */
    double *factor, *target;                /* Cholesky factors (groups,K,K), W* (rows,K) */
    bool *factored;                         /* (groups) */
    bool bias_free;
    int64_t rows, blocks;
    qk_candidate candidate;
    double damping;
    int32_t *lo, *hi;                 /* (rows,K) */
    int32_t *q, *bias_q;              /* the candidate at hand */
    double *bias_before;              /* (rows): the start's bias */
    double *error[2], *best_error[2]; /* (rows), by qk_set: of the candidate at hand, of the best one */
    qk_candidate *winner;             /* (rows) */
    double *scratch;                  /* (threads, 3, QK_ROW_BLOCK, K) */
} solver;

/* ---- set-up ---------------------------------------------------------------------------------- */

static void solver_destroy(solver *s) {
    for (int set = 0; set < 2; set++) {
        qk_quadratic_destroy(&s->raw[set]);
        free(s->error[set]);
        free(s->best_error[set]);
    }
    qk_quadratic_destroy(&s->solving);
    void *arrays[] = {s->gram_diagonal, s->cross_undamped, s->factor, s->target, s->factored, s->lo, s->hi, s->q,
                      s->bias_q,        s->bias_before,    s->winner, s->scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static qk_status solver_allocate(solver *s) {
    const int64_t K = s->solving.inputs, groups = s->solving.groups, weights = s->rows * K;
    s->gram_diagonal = QK_NEW(double, groups * K);
    s->cross_undamped = QK_NEW(double, weights);
    s->factor = QK_NEW(double, groups * K * K);
    s->target = QK_NEW(double, weights);
    s->factored = QK_NEW(bool, groups);
    s->lo = QK_NEW(int32_t, weights);
    s->hi = QK_NEW(int32_t, weights);
    s->q = QK_NEW(int32_t, weights);
    s->bias_q = QK_NEW(int32_t, s->rows);
    s->bias_before = QK_NEW(double, s->rows);
    s->winner = QK_NEW(qk_candidate, s->rows);
    s->scratch = QK_NEW(double, (int64_t)qk_pool_threads(s->pool) * 3 * QK_ROW_BLOCK * K);
    for (int set = 0; set < 2; set++) {
        s->error[set] = QK_NEW(double, s->rows);
        s->best_error[set] = QK_NEW(double, s->rows);
    }
    return s->gram_diagonal && s->cross_undamped && s->factor && s->target && s->factored && s->lo && s->hi && s->q &&
                   s->bias_q && s->bias_before && s->winner && s->scratch && s->error[0] && s->error[1] &&
                   s->best_error[0] && s->best_error[1]
               ? QK_OK
               : QK_E_NOMEM;
}

static int32_t clip(double q, int32_t lo, int32_t hi) { return (int32_t)fmin(fmax(q, lo), hi); }

static void make_box(solver *s) {
    const qk_quantized_layer *l = s->start;
    const int64_t K = s->solving.inputs;
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t i = r * K; i < (r + 1) * K; i++) {
            if (s->options->box == QK_BOX_FREE) {
                s->lo[i] = l->qmin;
                s->hi[i] = l->qmax;
                continue;
            }
            const double floor_q = floor(l->weight[i] / l->weight_scale[r]) + l->weight_zp[r];
            s->lo[i] = clip(floor_q, l->qmin, l->qmax);
            s->hi[i] = clip(floor_q + 1, l->qmin, l->qmax);
        }
}

static qk_status solver_init(solver *s, const qk_layer *layer) {
    for (int set = 0; set < 2; set++) QK_TRY(qk_quadratic_init(&s->raw[set], layer, (qk_set)set, true));
    QK_TRY(qk_quadratic_init(&s->solving, layer, QK_FITTED, true));
    s->rows = s->solving.groups * s->solving.outputs;
    s->blocks = (s->solving.outputs + QK_ROW_BLOCK - 1) / QK_ROW_BLOCK;
    QK_TRY(solver_allocate(s));
    const qk_quantized_layer *l = s->start;
    s->bias_free = s->options->update_bias && l->bias && l->bias_scale;
    for (int64_t r = 0; r < s->rows; r++) s->bias_before[r] = l->bias ? l->bias[r] : 0;
    if (s->bias_free)
        qk_quadratic_centre(&s->solving);
    else if (l->bias)
        qk_quadratic_fix_bias(&s->solving, l->bias);
    const int64_t K = s->solving.inputs;
    for (int64_t i = 0; i < s->solving.groups * K; i++) s->gram_diagonal[i] = s->solving.gram[i * K + i % K];
    memcpy(s->cross_undamped, s->solving.cross, (size_t)(s->rows * K) * sizeof(double));
    make_box(s);
    return QK_OK;
}

/* ---- one candidate --------------------------------------------------------------------------- */

/* G + lam I and C + lam W for one group, its Cholesky factor, and W*. lam = damping * mean diagonal of G. */
static void damp_task(void *context, int64_t group, int worker) {
    (void)worker;
    solver *s = context;
    const int64_t K = s->solving.inputs, O = s->solving.outputs;
    double *gram = s->solving.gram + group * K * K, *factor = s->factor + group * K * K, trace = 0;
    for (int64_t k = 0; k < K; k++) trace += s->gram_diagonal[group * K + k];
    const double lam = s->damping * trace / (double)K;
    for (int64_t k = 0; k < K; k++) gram[k * K + k] = s->gram_diagonal[group * K + k] + lam;
    for (int64_t i = group * O * K; i < (group + 1) * O * K; i++) {
        s->solving.cross[i] = s->cross_undamped[i] + lam * s->start->weight[i];
        s->target[i] = s->solving.cross[i];
    }
    if (s->candidate != QK_ROUNDING_DESCENT) return;
    memcpy(factor, gram, (size_t)(K * K) * sizeof *factor);
    s->factored[group] = trace > 0 && qk_cholesky(factor, K);
    if (s->factored[group]) qk_cholesky_solve(s->target + group * O * K, O, factor, K);
}

static void solve_task(void *context, int64_t task, int worker) {
    solver *s = context;
    const qk_quantized_layer *l = s->start;
    const int64_t K = s->solving.inputs, O = s->solving.outputs, group = task / s->blocks;
    const int64_t first = group * O + task % s->blocks * QK_ROW_BLOCK, end = (group + 1) * O;
    const int64_t m = end - first < QK_ROW_BLOCK ? end - first : QK_ROW_BLOCK;
    double *w = s->scratch + (int64_t)worker * 3 * QK_ROW_BLOCK * K, *scratch = w + QK_ROW_BLOCK * K;
    qk_integer_rows rows = {.count = m,
                            .inputs = K,
                            .scale = l->weight_scale + first,
                            .zp = l->weight_zp + first,
                            .lo = s->lo + first * K,
                            .hi = s->hi + first * K,
                            .q = s->q + first * K,
                            .w = w};

    memcpy(rows.q, l->weight_q + first * K, (size_t)(m * K) * sizeof *rows.q);
    for (int64_t i = 0; i < m * K; i++) w[i] = (double)rows.scale[i / K] * (rows.q[i] - rows.zp[i / K]);
    if (s->candidate == QK_ROUNDING_DESCENT && s->factored[group])
        qk_successive_rounding(&rows, s->target + first * K, s->factor + group * K * K, scratch);
    if (s->candidate == QK_DESCENT || s->candidate == QK_ROUNDING_DESCENT)
        qk_coordinate_descent(&rows, s->solving.gram + group * K * K, s->solving.cross + first * K,
                              s->options->max_sweeps, scratch);

    double bias[QK_ROW_BLOCK];
    for (int64_t i = 0; i < m; i++) {
        const int64_t r = first + i;
        bias[i] = s->bias_before[r];
        if (!s->bias_free || s->candidate == QK_START) continue;
        double wmu = 0; /* the best bias for these weights: b = m - w mu */
        for (int64_t k = 0; k < K; k++) wmu += w[i * K + k] * s->raw[QK_FITTED].mean_x[group * K + k];
        s->bias_q[r] = clip(rint((s->raw[QK_FITTED].mean_y[r] - wmu) / l->bias_scale[r]), l->bias_qmin, l->bias_qmax);
        bias[i] = (double)l->bias_scale[r] * s->bias_q[r];
    }
    for (int set = 0; set < 2; set++) qk_output_error(&s->raw[set], first, m, w, bias, scratch, s->error[set] + first);
}

static double total(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static void run_candidate(solver *s, qk_candidate candidate, double damping) {
    s->candidate = candidate;
    s->damping = damping;
    qk_pool_run(s->pool, damp_task, s, s->solving.groups);
    qk_pool_run(s->pool, solve_task, s, s->solving.groups * s->blocks);
}

/* Takes over the outputs that the candidate at hand makes better on held-out rows. */
static void keep_better_rows(solver *s, qk_least_squares_result *best) {
    const int64_t K = s->solving.inputs;
    for (int64_t r = 0; r < s->rows; r++) {
        if (!(s->error[QK_HELD_OUT][r] < s->best_error[QK_HELD_OUT][r])) continue;
        for (int set = 0; set < 2; set++) s->best_error[set][r] = s->error[set][r];
        memcpy(best->weight_q + r * K, s->q + r * K, (size_t)K * sizeof *s->q);
        if (s->bias_free) best->bias_q[r] = s->bias_q[r];
        s->winner[r] = s->candidate;
    }
}

/* Errors of the outputs' best candidates together, and which candidate won most of the improved outputs. */
static void sum_up(const solver *s, qk_least_squares_result *result) {
    int64_t wins[QK_CANDIDATES] = {0};
    for (int set = 0; set < 2; set++) result->after[set] = total(s->best_error[set], s->rows);
    for (int64_t r = 0; r < s->rows; r++) wins[s->winner[r]]++;
    result->improved = s->rows - wins[QK_START];
    result->candidate = QK_START;
    for (int c = QK_START + 1; c < QK_CANDIDATES; c++)
        if (wins[c] > 0 && (result->candidate == QK_START || wins[c] > wins[result->candidate]))
            result->candidate = (qk_candidate)c;
}

static bool cancelled(const qk_least_squares_options *o) { return o->cancelled && o->cancelled(o->user); }

static qk_status try_candidates(solver *s, qk_least_squares_result *result) {
    const qk_least_squares_options *o = s->options;
    run_candidate(s, QK_START, 0);
    for (int set = 0; set < 2; set++) {
        result->before[set] = total(s->error[set], s->rows);
        result->power[set] = total(s->raw[set].power, s->rows);
    }
    for (int set = 0; set < 2; set++) memcpy(s->best_error[set], s->error[set], (size_t)s->rows * sizeof(double));
    for (int64_t r = 0; r < s->rows && s->bias_free; r++)
        result->bias_q[r] =
            clip(rint((double)s->start->bias[r] / s->start->bias_scale[r]), s->start->bias_qmin, s->start->bias_qmax);
    memcpy(result->weight_q, s->start->weight_q, (size_t)(s->rows * s->solving.inputs) * sizeof(int32_t));
    if (s->bias_free) {
        run_candidate(s, QK_BIAS_ONLY, 0);
        keep_better_rows(s, result);
    }
    for (int i = 0; i < o->damping_count; i++)
        for (qk_candidate c = QK_DESCENT; c <= QK_ROUNDING_DESCENT; c++) {
            if (cancelled(o)) return QK_E_CANCELLED;
            run_candidate(s, c, o->damping[i]);
            keep_better_rows(s, result);
        }
    sum_up(s, result);
    return QK_OK;
}

qk_status qk_least_squares(const qk_layer *layer, const qk_quantized_layer *start,
                           const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    solver s = {.start = start, .options = options, .pool = pool};
    qk_status status = solver_init(&s, layer);
    if (status == QK_OK) {
        qk_blas_enter();
        status = try_candidates(&s, result);
        qk_blas_leave();
    }
    solver_destroy(&s);
    return status;
}
