/* The published loops, AdaRound and AdaQuant (adaround.c, adaquant.c): Adam on mini-batches. */
#include "training/training_loop.h"

#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "training/device_steps.h"
#include "training/early_stop.h"
#include "training/training_result.h"
#include "training/variables.h"

enum { STEPS_PER_LOOK = 64 }; /* between two questions whether to cancel */

/* A layer in training, its parts by how often they change: never, in each step, at the end. */
typedef struct {
    qk_training_problem problem;
    qk_step_loss loss;
    qk_variables variables;
    qk_float_layer layer;
    qk_judge judge;
    qk_training_result result;
    qk_device_loss device; /* of a device, where it is used */
} training;

static qk_status training_init(training *t) {
    QK_TRY(qk_training_problem_init(&t->problem));
    QK_TRY(qk_float_layer_init(&t->layer, &t->problem));
    QK_TRY(qk_variables_init(&t->variables, &t->problem, &t->layer));
    const bool bias_moves = t->variables.rules->steps_bias && qk_trains_bias(&t->problem);
    QK_TRY(qk_step_loss_init(&t->loss, &t->problem, bias_moves));
    return qk_judge_init(&t->judge, &t->problem);
}

/* Copies the samples to the device that the options name, unless it cannot take them. */
static qk_status use_device(training *t, qk_gradient_result *result) {
    const qk_gradient_options *o = t->problem.options;
    const qk_device_calls calls = {.samples = qk_larger(o->batch_size, QK_JUDGED_TOGETHER),
                                   .listed = o->batch_size * QK_DEVICE_STEPS,
                                   .drop_ratio = o->drop_ratio};
    result->on_device = o->device && qk_device_loss_applies(t->problem.data, calls.samples);
    if (!result->on_device) return QK_OK;
    QK_TRY(qk_device_loss_init(&t->device, t->problem.data, o->device, calls));
    t->judge.device = &t->device;
    return QK_OK;
}

static void training_destroy(training *t) {
    qk_device_loss_destroy(&t->device);
    qk_training_result_destroy(&t->result);
    qk_judge_destroy(&t->judge);
    qk_step_loss_destroy(&t->loss);
    qk_variables_destroy(&t->variables);
    qk_float_layer_destroy(&t->layer);
    qk_training_problem_destroy(&t->problem);
}

/* Judges the start, which gives the units, and what the caller offers. */
static qk_status judge_start(training *t, qk_gradient_result *result) {
    const int64_t inputs = t->problem.data->geometry.groups * t->problem.inputs;
    double *input_power = QK_NEW(double, inputs + t->problem.rows), *slope_power = input_power + inputs;
    if (!input_power) return QK_E_NOMEM;
    qk_status status = qk_training_result_init(&t->result, &t->judge, &t->layer, result);
    if (status == QK_OK) status = qk_judge_start(&t->result, input_power, slope_power);
    if (status == QK_OK) qk_variables_set_units(&t->variables, input_power, slope_power);
    if (status == QK_OK) qk_offer_first(&t->result);
    free(input_power);
    return status;
}

static qk_status iterate(training *t, qk_gradient_result *result) {
    const qk_gradient_options *o = t->problem.options;
    qk_early_stop stop = qk_early_stop_start(o->window, o->patience);
    for (int64_t it = 0; it < o->iterations && o->losses; it++) o->losses[it] = NAN; /* of steps that are not run */
    qk_weigh_variables(&t->variables);
    for (int64_t it = 0; it < o->iterations; it++) {
        if (it % STEPS_PER_LOOK == 0 && qk_is_cancelled(&t->problem)) return QK_E_CANCELLED;
        qk_step_loss_find(&t->loss, it, &t->layer);
        if (o->losses) o->losses[it] = t->loss.found.loss;
        if (o->window > 0 && qk_early_stop_ends_window(&stop)) qk_hold_variables(&t->variables);
        qk_move_variables(&t->variables, it, t->loss.found.gradient, t->loss.found.slope);
        result->iterations = it + 1;
        if (o->window == 0 || !t->variables.step.counts) continue;
        const qk_verdict verdict = qk_early_stop_add(&stop, qk_watched_loss(&t->variables, t->loss.found.loss));
        if (verdict == QK_NEW_BEST) {
            qk_keep_held_variables(&t->variables);
        } else if (verdict == QK_STOP) {
            result->end = QK_STOPPED_EARLY;
            break;
        }
    }
    qk_use_best_variables(&t->variables);
    return QK_OK;
}

/* Whether AdaRound's regulariser may have this exponent. */
static bool is_exponent(double beta) { return beta > 0 && beta <= 1e6; }

static bool are_in_range(const qk_gradient_options *o) {
    return o->batch_size >= 1 && o->step_positions >= 0 && o->iterations >= 1 && o->learning_rate > 0 &&
           o->drop_ratio >= 0 && o->drop_ratio <= 1 && is_exponent(o->beta_start) && is_exponent(o->beta_end);
}

qk_status qk_train_in_way(const qk_training_data *data, const qk_quantized_layer *start,
                          const qk_gradient_options *options, qk_pool *pool, qk_loss_way way,
                          qk_gradient_result *result) {
    training t = {.problem = {.data = data, .start = start, .options = options, .pool = pool}};
    if (!are_in_range(options)) return QK_E_ARG;
    if (options->device) qk_device_take(options->device);
    qk_blas_enter();
    qk_pool_keep_awake(pool, true);
    qk_status status = training_init(&t);
    if (status == QK_OK) status = use_device(&t, result);
    if (status == QK_OK)
        status = qk_step_loss_choose_way(&t.loss, result->on_device ? QK_DIRECTLY : way, &t.judge.all, t.layer.bias);
    if (status == QK_OK) status = qk_judge_use_moments(&t.judge, t.loss.by_grams ? &t.loss.grams : NULL);
    if (status == QK_OK) status = judge_start(&t, result);
    if (status == QK_OK)
        status =
            result->on_device ? qk_iterate_on_device(&t.device, &t.loss, &t.variables, result) : iterate(&t, result);
    qk_pool_keep_awake(pool, false);
    if (status == QK_OK) status = qk_finish(&t.result, &t.variables);
    qk_blas_leave();
    training_destroy(&t);
    if (t.judge.failed != QK_OK) status = t.judge.failed; /* whatever followed from it */
    if (!options->device) return status;
    const qk_status of_device = qk_device_release(options->device);
    return status == QK_OK ? of_device : status;
}

qk_status qk_train(const qk_training_data *data, const qk_quantized_layer *start, const qk_gradient_options *options,
                   qk_pool *pool, qk_gradient_result *result) {
    return qk_train_in_way(data, start, options, pool, QK_AS_IT_PAYS, result);
}

qk_status qk_start_loss(const qk_training_data *data, const qk_quantized_layer *start, qk_pool *pool, double *loss) {
    qk_training_problem p = {.data = data, .start = start, .pool = pool};
    qk_float_layer layer = {0};
    qk_judge judge = {0};
    qk_blas_enter();
    qk_status status = qk_training_problem_init(&p);
    if (status == QK_OK) status = qk_float_layer_init(&layer, &p);
    if (status == QK_OK) status = qk_judge_init(&judge, &p);
    *loss = 0;
    for (int set = 0; set < 2 && status == QK_OK; set++)
        if (p.count[set] > 0)
            *loss += qk_judge_loss(&judge, &layer, (qk_set)set, (qk_summary){0}) * (double)p.count[set] /
                     (double)data->count;
    qk_blas_leave();
    qk_judge_destroy(&judge);
    qk_float_layer_destroy(&layer);
    qk_training_problem_destroy(&p);
    return status;
}
