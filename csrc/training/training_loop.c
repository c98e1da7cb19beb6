/* The published loops: AdaRound (arXiv 2004.10568) and AdaQuant (2006.10518), by Adam on mini-batches.
 *
 * Each output channel is a problem of its own (but for softmax), and so the loss of channel r is taken in units of
 * U_r = E[scale_r^2 x^2] E[f'^2], about what it costs to move one weight by one step; f' is the derivative of what
 * stands between the layer's output and the loss. Then neither Adam nor AdaRound's regulariser depends on
 * the scale of activations or weights, nor on the number of weights (docs/numerics.md). */
#include "training/training_loop.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/random.h"
#include "base/sizes.h"
#include "ops/quantized_weight.h"
#include "training/early_stop.h"
#include "training/schedule.h"
#include "training/training_result.h"

enum {
    ROWS_PER_TASK = 16,  /* of the step of the weights */
    STEPS_PER_LOOK = 64, /* between two questions whether to cancel */
    SAMPLES_PER_LOOK = 16
};

/* What reg_param 0.01 means: pulling a weight from the middle of its box to an end outweighs one unit U of loss. */
static const double UNITS_PER_REG_PARAM = 100;

/* The samples of the next step: all take their turn in a shuffled order before it is shuffled anew, which leaves less
 * noise in the sum of the steps than drawing each step by itself. */
static const int64_t *draw(qk_trainer *t, qk_random *random) {
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

/* A step of `n` weights from `at` on, which share a scale. Returns the sum of AdaRound's regulariser. */
static double step_block(qk_trainer *t, int64_t at, size_t n) {
    const qk_quantized_layer *l = t->start;
    const float *gradient = t->found.gradient + at;
    const int64_t block = qk_scale_of(l, t->inputs, at);
    const float scale = l->weight_scale[block], zp = (float)l->weight_zp[block];
    const float lo = (float)l->qmin, hi = (float)l->qmax;
    if (t->options->method == QK_ADAROUND) {
        const qk_soft_rounding s = {t->variable + at,
                                    t->first + at,
                                    t->second + at,
                                    t->sigmoid + at,
                                    t->base + at,
                                    t->weight + at,
                                    scale,
                                    zp,
                                    lo,
                                    hi,
                                    t->penalty,
                                    t->beta};
        return qk_kernels_get()->soft_rounding_step(&s, gradient, t->adam, n);
    }
    const qk_straight_through s = {t->variable + at, t->first + at, t->second + at, t->weight + at, scale, zp, lo, hi};
    qk_kernels_get()->straight_through_step(&s, gradient, t->adam, n);
    return 0;
}

static void step_row(qk_trainer *t, int64_t r) {
    const int64_t K = t->inputs, block = qk_scale_block(t->start, K);
    for (int64_t k = 0; k < K; k++) t->found.gradient[r * K + k] *= t->per_unit[r];
    t->rounding[r] = 0;
    for (int64_t k = 0; k < K; k += block) t->rounding[r] += step_block(t, r * K + k, (size_t)block);
}

static void step_task(void *context, int64_t task, int worker) {
    (void)worker;
    qk_trainer *t = context;
    for (int64_t r = task * ROWS_PER_TASK; r < (task + 1) * ROWS_PER_TASK && r < t->rows; r++) step_row(t, r);
}

/* A step of all weights; a negative rate only brings `weight` up to date with the variables. */
static void step_weights(qk_trainer *t) { qk_pool_run(t->pool, step_task, t, qk_ceil_div(t->rows, ROWS_PER_TASK)); }

static void step_bias(qk_trainer *t) {
    for (int64_t r = 0; r < t->rows; r++) t->found.slope[r] *= t->per_unit[r];
    qk_kernels_get()->adam(t->bias, t->bias_first, t->bias_second, t->found.slope, t->adam, (size_t)t->rows);
}

/* What early stop watches: the loss in units, for AdaRound with the regulariser. */
static double watched_loss(const qk_trainer *t, double reconstruction) {
    if (t->options->method == QK_ADAQUANT) return reconstruction;
    double rounding = 0;
    for (int64_t r = 0; r < t->rows; r++)
        if (t->per_unit[r] > 0) rounding += t->rounding[r] / (double)t->per_unit[r];
    return reconstruction + t->penalty * rounding;
}

static void keep_best(qk_trainer *t) {
    memcpy(t->best, t->variable, (size_t)t->weights * sizeof(float));
    memcpy(t->best_bias, t->bias, (size_t)t->rows * sizeof(float));
}

/* AdaRound's loop leaves the bias to the end. */
static bool steps_bias(const qk_trainer *t) { return qk_trains_bias(t) && t->options->method == QK_ADAQUANT; }

static bool is_cancelled(const qk_trainer *t) {
    return t->options->cancelled && t->options->cancelled(t->options->user);
}

/* Whether steps take loss and gradient from Gram matrices. */
static bool uses_grams(const qk_trainer *t, qk_loss_way way) {
    qk_affine affine;
    const qk_gram_loss_use use = {t->count[QK_FITTED], t->options->batch_size, t->options->iterations, t->on.plan.pays,
                                  qk_bytes_of(t->data->x, &affine)};
    if (!qk_stage_is_plain(&t->data->stage) || qk_mixes(t) || way == QK_DIRECTLY) return false;
    return way == QK_BY_GRAMS || qk_gram_loss_pays(&t->data->geometry, t->data->extent.positions, use);
}

/* From what the layer was quantized from: the loops do not go far from there. */
static qk_status make_grams(qk_trainer *t) {
    const int64_t *samples = t->samples[QK_FITTED], count = t->count[QK_FITTED];
    QK_TRY(qk_sample_grams_init(&t->grams, &t->all, t->start->weight, t->bias, steps_bias(t), count));
    QK_TRY(qk_gram_loss_init(&t->gram_loss, &t->grams, t->options->batch_size));
    for (int64_t i = 0; i < count; i += SAMPLES_PER_LOOK) {
        if (i > 0 && is_cancelled(t)) return QK_E_CANCELLED;
        qk_sample_grams_add(&t->grams, samples + i, count - i < SAMPLES_PER_LOOK ? count - i : SAMPLES_PER_LOOK);
    }
    return QK_OK;
}

static qk_status iterate(qk_trainer *t, qk_gradient_result *result) {
    const qk_gradient_options *o = t->options;
    const qk_schedule schedule = {o->iterations, o->warm_start, o->beta_start, o->beta_end};
    const bool bias = steps_bias(t);
    float *slope = t->found.slope;
    double *power = t->found.mean_power;
    qk_random random = qk_random_stream(o->seed, 0);
    qk_early_stop stop = qk_early_stop_start(o->window, o->patience);
    for (int64_t it = 0; it < o->iterations && o->losses; it++) o->losses[it] = NAN; /* of steps that are not run */
    bool has_best = false;
    t->adam.rate = -1; /* from the start's integers to the variables' weights */
    step_weights(t);
    for (int64_t it = 0; it < o->iterations; it++) {
        if (it % STEPS_PER_LOOK == 0 && is_cancelled(t)) return QK_E_CANCELLED;
        const int64_t *samples = draw(t, &random);
        if (qk_mixes(t)) qk_qdrop_draw(&t->mixing, samples, o->batch_size, it, t->pool);
        t->on.inputs = t->mixing.samples;
        t->found.slope = bias ? slope : NULL;
        t->found.mean_power = NULL;
        if (t->by_grams)
            qk_gram_loss_find(&t->gram_loss, t->weight, t->bias, samples, o->batch_size, &t->found);
        else
            qk_reconstruct(&t->on, t->weight, t->bias, samples, o->batch_size, &t->found);
        t->found.slope = slope;
        t->found.mean_power = power;
        const bool warm = o->method == QK_ADAQUANT || qk_schedule_is_warm(&schedule, it);
        t->penalty = o->method == QK_ADAROUND && warm ? (float)(UNITS_PER_REG_PARAM * o->reg_param) : 0;
        t->beta = (float)qk_schedule_beta(&schedule, it);
        t->adam = qk_adam_at(o->learning_rate, it + 1);
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

/* Whether AdaRound's regulariser may have this exponent. */
static bool is_exponent(double beta) { return beta > 0 && beta <= 1e6; }

qk_status qk_train_in_way(const qk_training_data *data, const qk_quantized_layer *start,
                          const qk_gradient_options *options, qk_pool *pool, qk_loss_way way,
                          qk_gradient_result *result) {
    qk_trainer t = {.data = data, .start = start, .options = options, .pool = pool};
    if (options->batch_size < 1 || options->iterations < 1 || !(options->learning_rate > 0)) return QK_E_ARG;
    if (!(options->drop_ratio >= 0 && options->drop_ratio <= 1)) return QK_E_ARG;
    if (!is_exponent(options->beta_start) || !is_exponent(options->beta_end)) return QK_E_ARG;
    qk_blas_enter();
    qk_pool_keep_awake(pool, true);
    qk_status status = qk_trainer_init(&t);
    t.by_grams = status == QK_OK && uses_grams(&t, way);
    if (t.by_grams) status = make_grams(&t);
    if (status == QK_OK) status = qk_judge_start(&t, result);
    if (status == QK_OK) qk_first_result(&t, result);
    if (status == QK_OK) status = iterate(&t, result);
    qk_pool_keep_awake(pool, false);
    if (status == QK_OK) status = qk_finish(&t, result);
    qk_blas_leave();
    qk_trainer_destroy(&t);
    return status;
}

qk_status qk_train(const qk_training_data *data, const qk_quantized_layer *start, const qk_gradient_options *options,
                   qk_pool *pool, qk_gradient_result *result) {
    return qk_train_in_way(data, start, options, pool, QK_AS_IT_PAYS, result);
}

qk_status qk_start_loss(const qk_training_data *data, const qk_quantized_layer *start, qk_pool *pool, double *loss) {
    const qk_gradient_options options = {.method = QK_ADAROUND, .batch_size = 1, .drop_ratio = 1};
    qk_trainer t = {.data = data, .start = start, .options = &options, .pool = pool};
    qk_blas_enter();
    const qk_status status = qk_trainer_init(&t);
    *loss = 0;
    for (int set = 0; set < 2 && status == QK_OK; set++)
        if (t.count[set] > 0)
            *loss += qk_evaluate(&t, (qk_set)set, (qk_summary){0}) * (double)t.count[set] / (double)data->count;
    qk_blas_leave();
    qk_trainer_destroy(&t);
    return status;
}
