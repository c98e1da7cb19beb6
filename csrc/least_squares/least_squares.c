/* Least squares over the integers: candidates solved on the fitted data, judged on the held-out ones.
 *
 * E |W^ x + b - y|^2 is quadratic in W^ and b, so moments, or few rows, replace the data (integer_problem.h). Each
 * candidate damps the Gram matrix differently (shrinking towards the float weight), rounds the damped minimum
 * by GPTQ, with few inputs to the closest point, then descends by coordinates. Outputs are problems of their own:
 * for each the candidate that is best on held-out rows wins, the start included. Larger layers
 * try dampings from strong to weak and only as long as that gains; the largest on a few of the outputs, and the best
 * candidates on all; where next to nothing is gained there, the others get no more than their best bias. */
#include "least_squares/least_squares.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "least_squares/candidate.h"
#include "least_squares/gram_problem.h"
#include "least_squares/row_problem.h"
#include "moments/layer.h"
#include "ops/quantized_weight.h"

enum {
    PILOT = 2,              /* blocks that candidates are tried on first */
    PILOT_SWEEPS = 8,       /* enough to compare them */
    FINALISTS = 2,          /* candidates for the others */
    LARGE = 8,              /* blocks that make such a pilot worth its while */
    SMALL = 16,             /* parts of what makes a layer large: up to there all dampings are tried */
    BATCH_NUMBERS = 1 << 21 /* about so many weights are worked on together */
};

/* The part of a held-out error that a pilot must gain beyond the best bias to have other integers sought elsewhere. */
static const double WORTH = 0.005;
/* The part that another damping must add to what the ones before gained, for a weaker one to be tried. */
static const double MORE = 0.02;

/* A candidate with its damping. */
typedef struct {
    qk_candidate kind;
    double damping;
    int order;
    double gain; /* of the outputs that it was tried on */
} candidate;

typedef struct {
    const qk_least_squares_options *options;
    const qk_quantized_layer *start;
    qk_quadratic shape; /* its sizes only */
    int64_t rows, blocks, capacity;
    qk_problem *problem;
    qk_batch batch;
    qk_evaluation evaluation;
    qk_holding holding;
    int64_t *indices;      /* (blocks): of those that are worked on */
    candidate *candidates; /* from strong to weak damping, then by gain */
    int count;
    bool pilot_alone; /* no candidate is worth it for the other outputs */
} search;

static bool is_bias_free(const qk_quantized_layer *start, const qk_least_squares_options *options) {
    return options->update_bias && start->bias && start->bias_scale;
}

/* Blocks of a batch. */
static int64_t capacity_of(int64_t blocks, int64_t inputs) {
    return qk_smaller(blocks, qk_larger(PILOT, BATCH_NUMBERS / (inputs * QK_LANES)));
}

static qk_status cancelled(const qk_least_squares_options *o) {
    return o->cancelled && o->cancelled(o->user) ? QK_E_CANCELLED : QK_OK;
}

/* ---- candidates ------------------------------------------------------------------------------ */

static int by_damping(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->damping != b->damping) return a->damping > b->damping ? -1 : 1;
    return a->order - b->order;
}

/* The best first; of equals the one that came first. */
static int by_gain(const void *left, const void *right) {
    const candidate *a = left, *b = right;
    if (a->gain != b->gain) return a->gain < b->gain ? -1 : 1;
    return a->order - b->order;
}

static qk_status list_candidates(search *s) {
    const qk_least_squares_options *o = s->options;
    const int ways = o->descends_only ? 1 : 2;
    s->count = ways * o->damping_count;
    s->candidates = QK_NEW(candidate, s->count);
    if (!s->candidates) return QK_E_NOMEM;
    for (int i = 0; i < s->count; i++)
        s->candidates[i] = (candidate){
            .kind = i % ways ? QK_ROUNDING_DESCENT : QK_DESCENT, .damping = o->damping[i / ways], .order = i};
    qsort(s->candidates, (size_t)s->count, sizeof *s->candidates, by_damping);
    return QK_OK;
}

/* The first `count` of the indices become the batch. *gain: that of the best bias. */
static qk_status begin(search *s, int64_t first, int64_t count, double *gain) {
    *gain = 0;
    qk_batch_fill(&s->batch, &s->shape, s->options->rounding, s->indices + first, count);
    QK_TRY(qk_evaluation_begin(&s->evaluation, &s->batch));
    return s->evaluation.bias_free ? qk_evaluation_run(&s->evaluation, QK_BIAS_ONLY, gain) : QK_OK;
}

static qk_status run(search *s, candidate *c) {
    QK_TRY(cancelled(s->options));
    QK_TRY(s->problem->does->damp(s->problem, c->damping, c->kind == QK_ROUNDING_DESCENT));
    return qk_evaluation_run(&s->evaluation, c->kind, &c->gain);
}

/* How much of the held-out error the outputs in the batch have lost, by what they hold. Not positive. */
static double held_change(const search *s) {
    double sum = 0;
    for (int64_t b = 0; b < s->batch.blocks; b++) {
        const qk_row_block *rows = &s->batch.block[b].rows;
        for (int64_t i = 0; i < rows->count; i++) sum += s->holding.change[QK_HELD_OUT][rows->first + i];
    }
    return sum;
}

/* The batch with the first candidates. stops: they go from strong to weak damping, as far as it pays. */
static qk_status run_batch(search *s, int count, bool stops) {
    double before = 0;
    for (int i = 0; i < count; i++) {
        QK_TRY(run(s, &s->candidates[i]));
        if (!stops || i + 1 == count || s->candidates[i + 1].damping == s->candidates[i].damping) continue;
        const double held = held_change(s);
        if (before < 0 && held >= before * (1 + MORE)) break;
        before = held;
    }
    return QK_OK;
}

/* All blocks from `first` of the indices on. */
static qk_status run_all(search *s, int64_t first, int count, bool stops) {
    double gain;
    for (int64_t at = first; at < s->blocks; at += s->capacity) {
        QK_TRY(cancelled(s->options));
        QK_TRY(begin(s, at, qk_smaller(s->capacity, s->blocks - at), &gain));
        QK_TRY(run_batch(s, count, stops));
    }
    return QK_OK;
}

/* The held-out error at the start of the outputs in the batch. */
static double held_out_error(const search *s) {
    double sum = 0;
    for (int64_t b = 0; b < s->batch.blocks; b++) {
        const qk_row_block *rows = &s->batch.block[b].rows;
        for (int64_t i = 0; i < rows->count; i++) sum += s->holding.before[QK_HELD_OUT][rows->first + i];
    }
    return sum;
}

/* Tries dampings from the strongest on, until one gains little more than the one before it, or less. *best: the most
 * gained so far. */
static qk_status run_dampings(search *s, qk_candidate kind, double *best) {
    double before = 0;
    for (int i = 0; i < s->count; i++) {
        candidate *c = &s->candidates[i];
        if (c->kind != kind) continue;
        QK_TRY(run(s, c));
        *best = fmin(*best, c->gain);
        if (c->gain >= before * (1 + MORE)) break;
        before = c->gain;
    }
    return QK_OK;
}

/* Descent comes first, as it needs no factor: where it is not worth it rounding is not either, which gains hardly more.
 * *tried: the candidates that the outputs may take, the best first; 0: none is worth it. */
static qk_status run_pilot(search *s, int64_t count, int *tried) {
    double best = 0, of_bias;
    QK_TRY(begin(s, 0, count, &of_bias));
    const double worth = of_bias - WORTH * held_out_error(s);
    s->evaluation.max_sweeps = (int)qk_smaller(PILOT_SWEEPS, s->options->max_sweeps);
    QK_TRY(run_dampings(s, QK_DESCENT, &best));
    s->pilot_alone = best >= worth;
    if (!s->pilot_alone) QK_TRY(run_dampings(s, QK_ROUNDING_DESCENT, &best));
    s->evaluation.max_sweeps = s->options->max_sweeps;
    qsort(s->candidates, (size_t)s->count, sizeof *s->candidates, by_gain);
    for (*tried = 0; *tried < s->count && !s->pilot_alone && s->candidates[*tried].gain < 0;) ++*tried;
    return QK_OK;
}

/* The indices of all blocks, those of the pilot first, which are spread over the outputs. */
static void order_blocks(search *s, int64_t pilot) {
    int64_t first = 0, at = pilot;
    for (int64_t b = 0; b < s->blocks; b++) {
        if (first < pilot && b == first * s->blocks / pilot)
            s->indices[first++] = b;
        else
            s->indices[at++] = b;
    }
}

static qk_status try_candidates(search *s) {
    const double work = (double)s->rows * (double)s->shape.inputs * (double)s->shape.inputs;
    const double large = (double)s->options->part_from;
    int tried;
    if (work <= large || s->count <= FINALISTS || s->blocks < LARGE) {
        order_blocks(s, 0);
        return run_all(s, 0, s->count, work > large / SMALL);
    }
    order_blocks(s, PILOT);
    QK_TRY(run_pilot(s, PILOT, &tried));
    return run_all(s, s->pilot_alone ? PILOT : 0, (int)qk_smaller(tried, FINALISTS), false);
}

/* ---- the result ------------------------------------------------------------------------------ */

static double total(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* A bias that the start holds off its grid can win by the rounding alone: then nothing has changed. */
static bool is_as_it_was(const search *s, int64_t row) {
    const int64_t K = s->shape.inputs;
    const int32_t *held = s->holding.weight_q + row * K;
    if (memcmp(held, s->start->weight_q + row * K, (size_t)K * sizeof *held) != 0) return false;
    return !s->evaluation.bias_free || s->holding.bias_q[row] == qk_start_bias_q(s->start, row);
}

static void hand_over(search *s, qk_least_squares_result *result) {
    int64_t wins[QK_CANDIDATES] = {0};
    for (int64_t r = 0; r < s->rows; r++) {
        if (is_as_it_was(s, r)) {
            s->holding.winner[r] = QK_START;
            for (int set = 0; set < 2; set++) s->holding.change[set][r] = 0;
        }
        wins[s->holding.winner[r]]++;
        if (s->evaluation.bias_free) result->bias_q[r] = s->holding.bias_q[r];
    }
    result->improved = s->rows - wins[QK_START];
    result->float64_factor = s->problem->float64_factor;
    result->pilot_alone = s->pilot_alone;
    result->candidate = QK_START;
    for (int c = QK_START + 1; c < QK_CANDIDATES; c++)
        if (wins[c] > 0 && (result->candidate == QK_START || wins[c] > wins[result->candidate]))
            result->candidate = (qk_candidate)c;
    for (int set = 0; set < 2; set++) {
        const double *mean_y = s->problem->mean_y[set];
        result->before[set] = total(s->holding.before[set], s->rows);
        result->after[set] = fmax(0, result->before[set] + total(s->holding.change[set], s->rows));
        result->power[set] = total(s->problem->power[set], s->rows);
        for (int64_t r = 0; r < s->rows; r++) result->power[set] += mean_y[r] * mean_y[r];
    }
}

static qk_status search_init(search *s, int32_t *weight_q) {
    const int64_t K = s->shape.inputs, lines = s->capacity * QK_LANES;
    s->indices = QK_NEW(int64_t, s->blocks);
    if (!s->indices) return QK_E_NOMEM;
    QK_TRY(list_candidates(s));
    QK_TRY(qk_batch_new(&s->batch, s->start, K, s->capacity));
    QK_TRY(qk_holding_new(&s->holding, s->start, s->evaluation.bias_free, s->rows, K, weight_q));
    return qk_evaluation_new(&s->evaluation, lines, K);
}

static void search_destroy(search *s) {
    qk_evaluation_destroy(&s->evaluation);
    qk_holding_destroy(&s->holding);
    qk_batch_destroy(&s->batch);
    free(s->candidates);
    free(s->indices);
}

/* The integers of a problem, in whatever form. */
static qk_status solve(qk_problem *problem, const qk_quantized_layer *start, const qk_least_squares_options *options,
                       qk_least_squares_result *result) {
    search s = {.options = options, .start = start, .problem = problem};
    s.shape = (qk_quadratic){.groups = problem->groups, .inputs = problem->inputs, .outputs = problem->outputs};
    s.rows = problem->groups * problem->outputs;
    s.blocks = qk_row_blocks(&s.shape, QK_LANES);
    s.capacity = capacity_of(s.blocks, problem->inputs);
    s.evaluation = (qk_evaluation){.problem = problem,
                                   .start = start,
                                   .bias_free = is_bias_free(start, options),
                                   .max_sweeps = options->max_sweeps,
                                   .holding = &s.holding};
    qk_status status = search_init(&s, result->weight_q);
    if (status == QK_OK) status = cancelled(options);
    if (status == QK_OK) status = try_candidates(&s);
    if (status == QK_OK) hand_over(&s, result);
    search_destroy(&s);
    return status;
}

/* Destroys the problem. */
static qk_status solve_once(qk_problem *problem, const qk_quantized_layer *start,
                            const qk_least_squares_options *options, qk_least_squares_result *result) {
    const qk_status status = solve(problem, start, options, result);
    problem->does->destroy(problem);
    return status;
}

qk_status qk_least_squares_on(const qk_quadratic moments[2], const qk_quantized_layer *start,
                              const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    const qk_quadratic *fitted = &moments[QK_FITTED];
    const qk_run run = {.pool = pool, .cancelled = options->cancelled, .user = options->user};
    const int64_t capacity = capacity_of(qk_row_blocks(fitted, QK_LANES), fitted->inputs);
    qk_problem *problem = NULL;
    QK_TRY(qk_quantized_layer_check(start, fitted->groups * fitted->outputs, fitted->inputs));
    qk_blas_enter();
    qk_status status = qk_gram_problem_new(&problem, moments, start, is_bias_free(start, options), capacity, &run);
    if (status == QK_OK) status = solve_once(problem, start, options, result);
    qk_blas_leave();
    return status;
}

static qk_status solve_rows(const qk_layer *layer, const qk_quantized_layer *start,
                            const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    const qk_geometry *g = qk_layer_geometry(layer);
    const qk_run run = {.pool = pool, .cancelled = options->cancelled, .user = options->user};
    const qk_quadratic shape = {.groups = g->groups, .inputs = g->inputs, .outputs = g->outputs};
    const int64_t capacity = capacity_of(qk_row_blocks(&shape, QK_LANES), g->inputs);
    qk_problem *problem = NULL;
    QK_TRY(qk_quantized_layer_check(start, g->groups * g->outputs, g->inputs));
    qk_blas_enter();
    qk_status status = qk_row_problem_new(&problem, layer, start, is_bias_free(start, options), capacity, &run);
    if (status == QK_OK) status = solve_once(problem, start, options, result);
    qk_blas_leave();
    result->one_row_in = layer->sets[QK_FITTED]->stride;
    return status;
}

qk_status qk_least_squares(const qk_layer *layer, const qk_quantized_layer *start,
                           const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result) {
    if (!layer->with_target && start->bias) return QK_E_ARG;
    if (layer->keeps_rows) return solve_rows(layer, start, options, pool, result);
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
