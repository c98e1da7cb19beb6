/* The published loops: AdaRound (arXiv 2004.10568) and AdaQuant (2006.10518), by Adam on mini-batches.
 *
 * Each output channel is a problem of its own (but for softmax), and so the loss of channel r is taken in units of
 * U_r = scale_r^2 E[x^2] E[f'^2], about what it costs to move one weight by one step; f' is the derivative of what
 * stands between the layer's output and the loss. Then neither Adam nor AdaRound's regulariser depends on
 * the scale of activations or weights, nor on the number of weights (docs/numerics.md). */
#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/random.h"
#include "finetune/early_stop.h"
#include "finetune/input_mixing.h"
#include "finetune/reconstruction.h"
#include "finetune/schedule.h"
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

enum {
    EVALUATED = 32,     /* samples at a time, where all are judged */
    ROWS_PER_TASK = 16, /* of the step of the weights */
    STEPS_PER_LOOK = 64 /* between two questions whether to cancel */
};

/* What reg_param 0.01 means: pulling a weight from the middle of its box to an end outweighs one unit U of loss. */
static const double UNITS_PER_REG_PARAM = 100;

typedef struct {
    const qk_training_data *data;
    const qk_quantized_layer *start;
    const qk_gradient_options *options;
    qk_pool *pool;
    int64_t rows, inputs, weights;
    int64_t *samples[2], count[2]; /* by qk_set */
    int64_t *order, drawn;         /* the fitted samples as they take their turn; how many have */
    qk_input_mixing mixing;        /* of drop_ratio below 1 */
    qk_reconstruction on, all;     /* of a step; of judging */
    qk_reconstruction_result found;
    float *weight, *variable, *base, *first, *second, *best; /* (rows, K) */
    float *bias, *bias_first, *bias_second, *best_bias;      /* (rows) */
    int32_t *weight_q, *bias_q;                              /* (rows, K), (rows): what the steps led to */
    float *per_unit;                                         /* (rows): 1 / U */
    double *rounding;                                        /* (rows): sum of the regulariser */
    double *row_loss, *row_slope, *row_offered;              /* (rows): scratch */
    bool *took;                                              /* (rows): whether the result is no longer the start */
    double *row_best;                                        /* (rows): judged loss of the result so far */
    qk_adam adam;
    float penalty, beta;
} trainer;

static bool mixes(const trainer *t) { return t->options->drop_ratio < 1; }
static bool trains_bias(const trainer *t) { return t->options->update_bias && t->start->bias && t->start->bias_scale; }

/* ---- set-up ---------------------------------------------------------------------------------- */

static void trainer_destroy(trainer *t) {
    qk_reconstruction_destroy(&t->on);
    qk_reconstruction_destroy(&t->all);
    qk_input_mixing_destroy(&t->mixing);
    void *arrays[] = {
        t->order,    t->samples[0], t->samples[1],  t->found.gradient, t->found.slope, t->found.mean_power,
        t->weight,   t->variable,   t->base,        t->first,          t->second,      t->best,
        t->bias,     t->bias_first, t->bias_second, t->best_bias,      t->per_unit,    t->rounding,
        t->row_loss, t->row_slope,  t->row_offered, t->took,           t->row_best,    t->weight_q,
        t->bias_q};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static qk_status trainer_allocate(trainer *t) {
    float **by_weight[] = {&t->weight, &t->variable, &t->base, &t->first, &t->second, &t->best, &t->found.gradient};
    float **by_row[] = {&t->bias, &t->bias_first, &t->bias_second, &t->best_bias, &t->per_unit, &t->found.slope};
    bool ok = true;
    for (size_t i = 0; i < sizeof by_weight / sizeof *by_weight; i++)
        ok &= (*by_weight[i] = QK_NEW(float, t->weights)) != NULL;
    for (size_t i = 0; i < sizeof by_row / sizeof *by_row; i++) ok &= (*by_row[i] = QK_NEW(float, t->rows)) != NULL;
    for (int set = 0; set < 2; set++) ok &= (t->samples[set] = QK_NEW(int64_t, t->data->count)) != NULL;
    t->order = QK_NEW(int64_t, t->data->count);
    t->weight_q = QK_NEW(int32_t, t->weights);
    t->bias_q = QK_NEW(int32_t, t->rows);
    t->found.mean_power = QK_NEW(double, t->data->geometry.groups * t->inputs);
    t->rounding = QK_NEW(double, t->rows);
    t->row_loss = QK_NEW(double, t->rows);
    t->row_best = QK_NEW(double, t->rows);
    t->row_slope = QK_NEW(double, t->rows);
    t->row_offered = QK_NEW(double, t->rows);
    t->took = QK_NEW(bool, t->rows);
    ok &= t->weight_q && t->bias_q && t->row_offered && t->took && t->order && t->found.mean_power && t->rounding &&
          t->row_loss && t->row_slope && t->row_best;
    return ok ? QK_OK : QK_E_NOMEM;
}

static void set_variables(trainer *t) {
    const qk_quantized_layer *l = t->start;
    for (int64_t i = 0; i < t->weights; i++) {
        const int64_t row = i / t->inputs;
        const float steps = l->weight[i] / l->weight_scale[row], whole = floorf(steps);
        t->weight[i] = l->weight_scale[row] * (float)(l->weight_q[i] - l->weight_zp[row]);
        t->base[i] = whole + (float)l->weight_zp[row];
        t->variable[i] = l->weight[i];
        if (t->options->method == QK_ADAROUND) /* the rectified sigmoid gives back the fraction */
            t->variable[i] = (float)-log(1.2 / ((double)(steps - whole) + 0.1) - 1);
    }
    for (int64_t r = 0; r < t->rows; r++) t->bias[r] = l->bias ? l->bias[r] : 0;
}

static qk_status trainer_init(trainer *t) {
    const qk_geometry *g = &t->data->geometry;
    if (t->data->count == 0) return QK_E_NO_ROWS;
    if (!qk_samples_are_finite(t->data)) return QK_E_NONFINITE;
    t->rows = g->groups * g->outputs;
    t->inputs = g->inputs;
    t->weights = t->rows * g->inputs;
    QK_TRY(trainer_allocate(t));
    for (int64_t s = 0; s < t->data->count; s++) {
        const qk_set set = qk_is_held_out(t->data, s) ? QK_HELD_OUT : QK_FITTED;
        t->samples[set][t->count[set]++] = s;
    }
    memcpy(t->order, t->samples[QK_FITTED], (size_t)t->count[QK_FITTED] * sizeof *t->order);
    if (t->options->batch_size > t->count[QK_FITTED]) return QK_E_ARG;
    const int64_t batch = t->options->batch_size;
    QK_TRY(qk_reconstruction_init(&t->on, t->data, batch, batch, t->pool));
    QK_TRY(qk_reconstruction_init(&t->all, t->data, EVALUATED, 0, t->pool));
    if (mixes(t)) {
        if (!t->data->x_float[0].data) return QK_E_ARG;
        QK_TRY(qk_input_mixing_init(&t->mixing, t->data, t->options->drop_ratio, t->options->seed,
                                    t->options->batch_size));
    }
    set_variables(t);
    return QK_OK;
}

/* ---- judging --------------------------------------------------------------------------------- */

/* What is added up while all samples of a set are judged; entries that are NULL are not. */
typedef struct {
    double *row_loss;     /* (rows) */
    double *mean_power;   /* (groups * K): mean square of each input */
    double *mean_error;   /* (rows): of each output, times the stage's derivative */
    double *slope_power;  /* (rows): mean square of that */
    double *target_power; /* mean square of the target */
} summary;

static void add_share(double *to, const double *from, int64_t n, double share) {
    for (int64_t i = 0; i < n && to; i++) to[i] += share * from[i];
}

/* The loss over all samples of a set; NaN without any. */
static double evaluate(trainer *t, qk_set set, summary sums) {
    double loss = 0, power = 0;
    qk_reconstruction_result found = {.row_loss = sums.row_loss ? t->row_loss : NULL,
                                      .slope = sums.mean_error ? t->found.slope : NULL,
                                      .mean_power = sums.mean_power ? t->found.mean_power : NULL,
                                      .slope_power = sums.slope_power ? t->row_slope : NULL,
                                      .target_power = sums.target_power ? &power : NULL};
    for (int64_t i = 0; i < t->count[set]; i += EVALUATED) {
        const int64_t n = t->count[set] - i < EVALUATED ? t->count[set] - i : EVALUATED;
        const double share = (double)n / (double)t->count[set];
        qk_reconstruct(&t->all, t->weight, t->bias, t->samples[set] + i, n, &found);
        loss += share * found.loss;
        add_share(sums.row_loss, found.row_loss, t->rows, share);
        add_share(sums.mean_power, found.mean_power, t->data->geometry.groups * t->inputs, share);
        add_share(sums.slope_power, found.slope_power, t->rows, share);
        add_share(sums.target_power, found.target_power, 1, share);
        for (int64_t r = 0; r < t->rows && sums.mean_error; r++) sums.mean_error[r] += share * found.slope[r] / 2;
    }
    return t->count[set] ? loss : NAN;
}

/* Held-out samples judge; with few samples those that were trained on. */
static qk_set judging_set(const trainer *t) { return t->count[QK_HELD_OUT] ? QK_HELD_OUT : QK_FITTED; }

static qk_status judge_start(trainer *t, qk_gradient_result *result) {
    const int64_t K = t->inputs, O = t->data->geometry.outputs, inputs = t->data->geometry.groups * K;
    double *power = QK_NEW(double, inputs + t->rows);
    if (!power) return QK_E_NOMEM;
    double *slope_power = power + inputs;
    result->power[QK_FITTED] = result->power[QK_HELD_OUT] = 0;
    for (int set = 0; set < 2; set++)
        result->before[set] = evaluate(t, (qk_set)set,
                                       (summary){.row_loss = (qk_set)set == judging_set(t) ? t->row_best : NULL,
                                                 .mean_power = set == QK_FITTED ? power : NULL,
                                                 .slope_power = set == QK_FITTED ? slope_power : NULL,
                                                 .target_power = &result->power[set]});
    for (int64_t r = 0; r < t->rows; r++) {
        double mean = 0;
        for (int64_t k = 0; k < K; k++) mean += power[r / O * K + k] / (double)K;
        const double scale = t->start->weight_scale[r];
        const float per_unit = (float)(1 / (scale * scale * mean * slope_power[r]));
        t->per_unit[r] = isfinite(per_unit) ? per_unit : 0; /* dead inputs or outputs: nothing to train */
    }
    free(power);
    const bool finite =
        isfinite(result->before[QK_FITTED]) && (t->count[QK_HELD_OUT] == 0 || isfinite(result->before[QK_HELD_OUT]));
    return finite ? QK_OK : QK_E_NONFINITE;
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* The samples of the next step: all take their turn in a shuffled order before it is shuffled anew, which leaves less
 * noise in the sum of the steps than drawing each step by itself. */
static const int64_t *draw(trainer *t, qk_random *random) {
    const int64_t count = t->count[QK_FITTED], each = t->options->batch_size;
    int64_t *order = t->order;
    if (t->drawn + each > count) t->drawn = 0;
    for (int64_t i = 0; i < count && t->drawn == 0; i++) {
        const int64_t j = i + (int64_t)qk_random_below(random, (uint64_t)(count - i)), s = order[i];
        order[i] = order[j];
        order[j] = s;
    }
    t->drawn += each;
    return order + t->drawn - each;
}

static void step_row(trainer *t, int64_t r) {
    const qk_quantized_layer *l = t->start;
    const int64_t at = r * t->inputs;
    const size_t n = (size_t)t->inputs;
    float *gradient = t->found.gradient + at;
    for (size_t k = 0; k < n; k++) gradient[k] *= t->per_unit[r];
    const float zp = (float)l->weight_zp[r], lo = (float)l->qmin, hi = (float)l->qmax;
    if (t->options->method == QK_ADAROUND) {
        const qk_soft_rounding s = {t->variable + at,
                                    t->first + at,
                                    t->second + at,
                                    t->base + at,
                                    t->weight + at,
                                    l->weight_scale[r],
                                    zp,
                                    lo,
                                    hi,
                                    t->penalty,
                                    t->beta};
        t->rounding[r] = qk_kernels_get()->soft_rounding_step(&s, gradient, t->adam, n);
    } else {
        const qk_straight_through s = {
            t->variable + at, t->first + at, t->second + at, t->weight + at, l->weight_scale[r], zp, lo, hi};
        qk_kernels_get()->straight_through_step(&s, gradient, t->adam, n);
    }
}

static void step_task(void *context, int64_t task, int worker) {
    (void)worker;
    trainer *t = context;
    for (int64_t r = task * ROWS_PER_TASK; r < (task + 1) * ROWS_PER_TASK && r < t->rows; r++) step_row(t, r);
}

/* A step of all weights; a negative rate only brings `weight` up to date with the variables. */
static void step_weights(trainer *t) {
    qk_pool_run(t->pool, step_task, t, (t->rows + ROWS_PER_TASK - 1) / ROWS_PER_TASK);
}

static void step_bias(trainer *t) {
    for (int64_t r = 0; r < t->rows; r++) t->found.slope[r] *= t->per_unit[r];
    qk_kernels_get()->adam(t->bias, t->bias_first, t->bias_second, t->found.slope, t->adam, (size_t)t->rows);
}

/* What early stop watches: the loss in units, for AdaRound with the regulariser. */
static double watched_loss(const trainer *t, double reconstruction) {
    if (t->options->method == QK_ADAQUANT) return reconstruction;
    double rounding = 0;
    for (int64_t r = 0; r < t->rows; r++)
        if (t->per_unit[r] > 0) rounding += t->rounding[r] / (double)t->per_unit[r];
    return reconstruction + t->penalty * rounding;
}

static void keep_best(trainer *t) {
    memcpy(t->best, t->variable, (size_t)t->weights * sizeof(float));
    memcpy(t->best_bias, t->bias, (size_t)t->rows * sizeof(float));
}

static qk_status iterate(trainer *t, qk_gradient_result *result) {
    const qk_gradient_options *o = t->options;
    const qk_schedule schedule = {o->iterations, o->warm_start, o->beta_start, o->beta_end};
    const bool bias = trains_bias(t) && o->method == QK_ADAQUANT;
    float *slope = t->found.slope;
    double *power = t->found.mean_power;
    qk_random random = qk_random_stream(o->seed, 0);
    qk_early_stop stop = qk_early_stop_start(o->window, o->patience);
    for (int64_t it = 0; it < o->iterations && o->losses; it++) o->losses[it] = NAN; /* of steps that are not run */
    bool has_best = false;
    t->adam.rate = -1; /* from the start's integers to the variables' weights */
    step_weights(t);
    for (int64_t it = 0; it < o->iterations; it++) {
        if (it % STEPS_PER_LOOK == 0 && o->cancelled && o->cancelled(o->user)) return QK_E_CANCELLED;
        const int64_t *samples = draw(t, &random);
        if (mixes(t)) qk_mix_inputs(&t->mixing, samples, o->batch_size, it, t->pool);
        t->on.inputs = t->mixing.samples;
        t->found.slope = bias ? slope : NULL;
        t->found.mean_power = NULL;
        qk_reconstruct(&t->on, t->weight, t->bias, samples, o->batch_size, &t->found);
        t->found.slope = slope;
        t->found.mean_power = power;
        const bool warm = o->method == QK_ADAQUANT || qk_schedule_is_warm(&schedule, it);
        t->penalty = o->method == QK_ADAROUND && warm ? (float)(UNITS_PER_REG_PARAM * o->reg_param) : 0;
        t->beta = (float)qk_schedule_beta(&schedule, it);
        t->adam = (qk_adam){(float)o->learning_rate, (float)(1 - pow(0.9, (double)(it + 1))),
                            (float)(1 - pow(0.999, (double)(it + 1)))};
        if (o->losses) o->losses[it] = t->found.loss;
        step_weights(t);
        if (bias) step_bias(t);
        result->iterations = it + 1;
        if (o->window == 0 || !warm) continue;
        const qk_verdict verdict = qk_early_stop_add(&stop, watched_loss(t, t->found.loss));
        if (verdict == QK_NEW_BEST) {
            keep_best(t);
            has_best = true;
        } else if (verdict == QK_STOP) {
            result->end = QK_STOPPED_EARLY;
            break;
        }
    }
    if (has_best) {
        memcpy(t->variable, t->best, (size_t)t->weights * sizeof(float));
        memcpy(t->bias, t->best_bias, (size_t)t->rows * sizeof(float));
    }
    return QK_OK;
}

/* ---- the result ------------------------------------------------------------------------------ */

static double sum_of(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

static double clip(double q, int32_t lo, int32_t hi) { return fmin(fmax(q, lo), hi); }

static int32_t integer_bias(const trainer *t, int64_t r, float bias) {
    const qk_quantized_layer *l = t->start;
    return (int32_t)clip(rint((double)(bias / l->bias_scale[r])), l->bias_qmin, l->bias_qmax);
}

/* The layer computes with these integers from now on. bias_q NULL: with the start's bias. */
static void use_integers(trainer *t, const int32_t *weight_q, const int32_t *bias_q) {
    const qk_quantized_layer *l = t->start;
    for (int64_t i = 0; i < t->weights; i++) {
        const int64_t row = i / t->inputs;
        t->weight[i] = l->weight_scale[row] * (float)(weight_q[i] - l->weight_zp[row]);
    }
    for (int64_t r = 0; r < t->rows && l->bias; r++)
        t->bias[r] = bias_q ? l->bias_scale[r] * (float)bias_q[r] : l->bias[r];
}

static void round_weights(trainer *t) {
    const qk_quantized_layer *l = t->start;
    for (int64_t i = 0; i < t->weights; i++) {
        const int64_t row = i / t->inputs;
        const double q = t->options->method == QK_ADAROUND
                             ? (double)t->base[i] + (t->variable[i] >= 0)
                             : rint((double)(t->variable[i] / l->weight_scale[row])) + l->weight_zp[row];
        t->weight_q[i] = (int32_t)clip(q, l->qmin, l->qmax);
        t->weight[i] = l->weight_scale[row] * (float)(t->weight_q[i] - l->weight_zp[row]);
    }
}

/* Whether the loss of one output depends on the weights of others. */
static bool outputs_are_coupled(const trainer *t) { return t->data->stage.activation.kind == QK_SOFTMAX; }

/* Outputs are problems of their own: the result takes these integers for those that get better by them. Coupled
 * outputs stand or fall together. Returns how many outputs took them. */
static int64_t offer(trainer *t, const int32_t *weight_q, const int32_t *bias_q, qk_gradient_result *result) {
    double *loss = t->row_offered;
    int64_t taken = 0;
    use_integers(t, weight_q, trains_bias(t) ? bias_q : NULL);
    memset(loss, 0, (size_t)t->rows * sizeof *loss);
    evaluate(t, judging_set(t), (summary){.row_loss = loss});
    const bool all_better = sum_of(loss, t->rows) < sum_of(t->row_best, t->rows);
    for (int64_t r = 0; r < t->rows; r++) {
        if (!(outputs_are_coupled(t) ? all_better : loss[r] < t->row_best[r])) continue;
        taken++;
        t->took[r] = true;
        t->row_best[r] = loss[r];
        memcpy(result->weight_q + r * t->inputs, weight_q + r * t->inputs, (size_t)t->inputs * sizeof *weight_q);
        if (trains_bias(t)) result->bias_q[r] = bias_q[r];
    }
    return taken;
}

/* The best bias for these weights; behind an activation a step of Gauss and Newton towards it, halved where it does not
 * lower the loss that it was fitted to, in the end not taken. */
static qk_status fit_bias(trainer *t) {
    enum { TRIES = 4 };
    double *step = QK_NEW(double, 4 * t->rows);
    if (!step) return QK_E_NOMEM;
    double *slope_power = step + t->rows, *before = slope_power + t->rows, *after = before + t->rows;
    float *start = t->best_bias; /* not needed any more */
    memcpy(start, t->bias, (size_t)t->rows * sizeof *start);
    evaluate(t, QK_FITTED, (summary){.row_loss = before, .mean_error = step, .slope_power = slope_power});
    for (int64_t r = 0; r < t->rows; r++) {
        step[r] = slope_power[r] > 0 ? step[r] / slope_power[r] : 0;
        t->bias[r] = start[r] - (float)step[r];
    }
    const double all_before = sum_of(before, t->rows);
    bool done = qk_stage_is_plain(&t->data->stage);
    for (int i = 1; i <= TRIES && !done; i++) {
        memset(after, 0, (size_t)t->rows * sizeof *after);
        evaluate(t, QK_FITTED, (summary){.row_loss = after});
        const bool all_better = sum_of(after, t->rows) < all_before;
        done = true;
        for (int64_t r = 0; r < t->rows; r++) {
            if (step[r] == 0 || (outputs_are_coupled(t) ? all_better : after[r] < before[r])) continue;
            step[r] = i < TRIES ? step[r] / 2 : 0;
            t->bias[r] = start[r] - (float)step[r];
            done = false;
        }
    }
    free(step);
    return QK_OK;
}

/* The better of the start and of what the caller offers, output by output. */
static void first_result(trainer *t, qk_gradient_result *result) {
    const qk_quantized_layer *l = t->start;
    const qk_gradient_options *o = t->options;
    memcpy(result->weight_q, l->weight_q, (size_t)t->weights * sizeof *l->weight_q);
    for (int64_t r = 0; r < t->rows && trains_bias(t); r++) result->bias_q[r] = integer_bias(t, r, l->bias[r]);
    if (!o->offered_weight_q) return;
    offer(t, o->offered_weight_q, o->offered_bias_q, result);
    use_integers(t, l->weight_q, NULL);
}

static qk_status finish(trainer *t, qk_gradient_result *result) {
    round_weights(t);
    if (trains_bias(t)) {
        if (t->options->method == QK_ADAROUND) QK_TRY(fit_bias(t));
        for (int64_t r = 0; r < t->rows; r++) t->bias_q[r] = integer_bias(t, r, t->bias[r]);
    }
    result->trained = offer(t, t->weight_q, t->bias_q, result);
    result->improved = 0;
    for (int64_t r = 0; r < t->rows; r++) result->improved += t->took[r];
    use_integers(t, result->weight_q, trains_bias(t) ? result->bias_q : NULL);
    for (int set = 0; set < 2; set++) {
        result->after[set] = evaluate(t, (qk_set)set, (summary){0});
        result->samples[set] = t->count[set];
    }
    return QK_OK;
}

qk_status qk_train(const qk_training_data *data, const qk_quantized_layer *start, const qk_gradient_options *options,
                   qk_pool *pool, qk_gradient_result *result) {
    trainer t = {.data = data, .start = start, .options = options, .pool = pool};
    if (options->batch_size < 1 || options->iterations < 1 || !(options->learning_rate > 0)) return QK_E_ARG;
    if (!(options->drop_ratio >= 0 && options->drop_ratio <= 1)) return QK_E_ARG;
    qk_blas_enter();
    qk_status status = trainer_init(&t);
    if (status == QK_OK) status = judge_start(&t, result);
    if (status == QK_OK) first_result(&t, result);
    qk_pool_keep_awake(pool, true);
    if (status == QK_OK) status = iterate(&t, result);
    qk_pool_keep_awake(pool, false);
    if (status == QK_OK) status = finish(&t, result);
    qk_blas_leave();
    trainer_destroy(&t);
    return status;
}

qk_status qk_start_loss(const qk_training_data *data, const qk_quantized_layer *start, qk_pool *pool, double *loss) {
    const qk_gradient_options options = {.method = QK_ADAROUND, .batch_size = 1, .drop_ratio = 1};
    trainer t = {.data = data, .start = start, .options = &options, .pool = pool};
    qk_blas_enter();
    const qk_status status = trainer_init(&t);
    *loss = 0;
    for (int set = 0; set < 2 && status == QK_OK; set++)
        if (t.count[set] > 0)
            *loss += evaluate(&t, (qk_set)set, (summary){0}) * (double)t.count[set] / (double)data->count;
    qk_blas_leave();
    trainer_destroy(&t);
    return status;
}
