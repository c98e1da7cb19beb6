#include "training/device_steps.h"

#include <math.h>

#include "base/memory.h"
#include "ops/quantized_weight.h"
#include "training/early_stop.h"

/* Arrays on the device, as qk_variables has them. */
typedef struct {
    qk_device_loss *loss;
    qk_device *device;
    qk_variables *v;
    bool moves_bias;
    qk_buffer weight, variable, m, v2, base, scale, zero_point, per_unit, bias, bias_m, bias_v;
    qk_buffer regulariser, losses; /* (rows); (steps, 2): as sum_step leaves them */
    qk_buffer held, held_bias, best, best_bias;
    bool has_best;
} device_steps;

static qk_buffer filled(qk_device *d, const float *from, int64_t n) {
    const qk_buffer b = qk_buffer_new(d, n, sizeof *from);
    if (from) qk_buffer_write(&b, 0, from, (size_t)n * sizeof *from);
    return b;
}

static qk_status steps_init(device_steps *s) {
    const qk_training_problem *p = s->v->problem;
    const int64_t n = p->weights, scales = n / qk_scale_block(p->start, p->inputs);
    qk_device *d = s->device;
    float *zero_point = QK_NEW(float, scales);
    if (!zero_point) return QK_E_NOMEM;
    for (int64_t i = 0; i < scales; i++) zero_point[i] = (float)p->start->weight_zp[i];
    s->weight = filled(d, NULL, n);
    s->variable = filled(d, s->v->variable, n);
    s->m = filled(d, NULL, n);
    s->v2 = filled(d, NULL, n);
    s->base = filled(d, s->v->base, s->v->base ? n : 1);
    s->scale = filled(d, p->start->weight_scale, scales);
    s->zero_point = filled(d, zero_point, scales);
    s->per_unit = filled(d, s->v->per_unit, p->rows);
    s->bias = filled(d, s->v->layer->bias, p->rows);
    s->bias_m = filled(d, NULL, p->rows);
    s->bias_v = filled(d, NULL, p->rows);
    s->regulariser = qk_buffer_new(d, p->rows, sizeof(double));
    s->losses = qk_buffer_new(d, 2 * QK_DEVICE_STEPS, sizeof(double));
    if (p->options->window > 0) {
        s->held = filled(d, NULL, n);
        s->best = filled(d, NULL, n);
        s->held_bias = filled(d, NULL, p->rows);
        s->best_bias = filled(d, NULL, p->rows);
    }
    free(zero_point);
    return qk_device_status(d);
}

static void steps_destroy(device_steps *s) {
    qk_buffer *all[] = {&s->weight,     &s->variable, &s->m,         &s->v2,     &s->base,     &s->scale,
                        &s->zero_point, &s->per_unit, &s->bias,      &s->bias_m, &s->bias_v,   &s->regulariser,
                        &s->losses,     &s->held,     &s->held_bias, &s->best,   &s->best_bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) qk_buffer_free(all[i]);
}

static bool rounds_softly(const device_steps *s) { return s->v->problem->options->method == QK_ADAROUND; }

/* Step number it; factor: from sums of products to the gradient. */
static qk_device_step step_at(const device_steps *s, const qk_step *step, double factor) {
    const qk_training_problem *p = s->v->problem;
    return (qk_device_step){.inputs = (int)p->inputs,
                            .block = (int)qk_scale_block(p->start, p->inputs),
                            .lo = (float)p->start->qmin,
                            .hi = (float)p->start->qmax,
                            .step_size = step->adam.step_size,
                            .v_correction = step->adam.v_correction,
                            .penalty = step->penalty,
                            .beta = step->beta,
                            .factor = (float)factor};
}

static void weigh(device_steps *s) {
    const qk_work rows = qk_work_lines(s->v->problem->rows);
    const qk_device_step step = step_at(s, &(qk_step){0}, 0);
    if (rounds_softly(s))
        QK_RUN(s->device, soft_weights, rows, QK_BUFFER(s->weight), QK_BUFFER(s->variable), QK_BUFFER(s->base),
               QK_BUFFER(s->scale), QK_BUFFER(s->zero_point), QK_VALUE(step));
    else
        QK_RUN(s->device, straight_weights, rows, QK_BUFFER(s->weight), QK_BUFFER(s->variable), QK_BUFFER(s->scale),
               QK_BUFFER(s->zero_point), QK_VALUE(step));
}

static void move(device_steps *s, const qk_device_step *of) {
    const int rows = (int)s->v->problem->rows;
    const qk_device_step step = *of;
    const qk_buffer *gradient = &s->loss->gradient;
    if (rounds_softly(s))
        QK_RUN(s->device, move_soft, qk_work_lines(rows), QK_BUFFER(s->weight), QK_BUFFER(s->variable), QK_BUFFER(s->m),
               QK_BUFFER(s->v2), QK_BUFFER(s->base), QK_BUFFER(s->scale), QK_BUFFER(s->zero_point),
               QK_BUFFER(*gradient), QK_BUFFER(s->per_unit), QK_BUFFER(s->regulariser), QK_VALUE(step));
    else
        QK_RUN(s->device, move_straight, qk_work_lines(rows), QK_BUFFER(s->weight), QK_BUFFER(s->variable),
               QK_BUFFER(s->m), QK_BUFFER(s->v2), QK_BUFFER(s->scale), QK_BUFFER(s->zero_point), QK_BUFFER(*gradient),
               QK_BUFFER(s->per_unit), QK_VALUE(step));
    if (s->moves_bias)
        QK_RUN(s->device, move_bias, qk_work_items(rows), QK_BUFFER(s->bias), QK_BUFFER(s->bias_m),
               QK_BUFFER(s->bias_v), QK_BUFFER(s->loss->sums), QK_BUFFER(s->per_unit), QK_VALUE(rows), QK_VALUE(step));
}

/* Steps first .. first + count - 1, which are asked for together. */
typedef struct {
    int64_t first, count;
    bool may_end_window; /* the last one */
} stretch;

static qk_step schedule_at(const device_steps *s, int64_t it) {
    const qk_gradient_options *o = s->v->problem->options;
    qk_step step = {.adam = qk_adam_at(o->learning_rate, it + 1)};
    s->v->rules->schedule(o, it, &step);
    return step;
}

/* Which samples each step takes, and QDrop's random numbers. */
static qk_status list_samples(device_steps *s, qk_step_loss *draws, stretch part) {
    const qk_gradient_options *o = s->v->problem->options;
    const int64_t batch = o->batch_size;
    uint64_t *states = QK_NEW(uint64_t, batch);
    if (!states) return QK_E_NOMEM;
    qk_status status = QK_OK;
    for (int64_t i = 0; i < part.count && status == QK_OK; i++) {
        status = qk_device_loss_list(s->loss, qk_step_loss_draw(draws), i * batch, batch);
        for (int64_t j = 0; j < batch; j++) states[j] = qk_qdrop_stream(o->seed, part.first + i, batch, j).state;
        if (o->drop_ratio < 1)
            qk_buffer_write(&s->loss->streams, (size_t)(i * batch) * sizeof *states, states,
                            (size_t)batch * sizeof *states);
    }
    free(states);
    return status;
}

/* losses (count, 2): what early stop and the caller look at, as sums. */
static qk_status run(device_steps *s, qk_step_loss *draws, stretch part, double *losses) {
    const qk_training_problem *p = s->v->problem;
    const qk_gradient_options *o = p->options;
    const int rows = (int)p->rows;
    const double columns = (double)(o->batch_size * p->data->extent.positions);
    QK_TRY(list_samples(s, draws, part));
    for (int i = 0; i < (int)part.count; i++) {
        const qk_step step = schedule_at(s, part.first + i);
        const qk_device_step of = step_at(s, &step, 2 / columns);
        qk_device_loss_run(
            s->loss, &s->weight, &s->bias,
            (qk_device_call){
                .first = i * o->batch_size, .count = o->batch_size, .mixes = o->drop_ratio < 1, .gradient = true});
        if (part.may_end_window && i + 1 == part.count) {
            qk_buffer_copy(&s->held, &s->variable);
            qk_buffer_copy(&s->held_bias, &s->bias);
        }
        move(s, &of);
        QK_RUN(s->device, sum_step, qk_work_lines(1), QK_BUFFER(s->losses), QK_VALUE(i), QK_BUFFER(s->loss->sums),
               QK_BUFFER(s->regulariser), QK_BUFFER(s->per_unit), QK_VALUE(rows));
    }
    qk_buffer_read(&s->losses, 0, losses, 2 * (size_t)part.count * sizeof *losses);
    return qk_device_status(s->device);
}

static void exchange(qk_buffer *a, qk_buffer *b) {
    const qk_buffer c = *a;
    *a = *b;
    *b = c;
}

/* A window ends, if at all, with the last step of a stretch. */
static stretch next_stretch(const qk_gradient_options *o, const qk_early_stop *stop, int64_t it) {
    stretch part = {it, qk_smaller(QK_DEVICE_STEPS, o->iterations - it), false};
    if (o->window == 0) return part;
    part.may_end_window = part.count >= o->window - stop->count;
    part.count = qk_smaller(part.count, o->window - stop->count);
    return part;
}

static qk_status iterate(device_steps *s, qk_step_loss *draws, qk_gradient_result *result) {
    const qk_training_problem *p = s->v->problem;
    const qk_gradient_options *o = p->options;
    const double columns = (double)(o->batch_size * p->data->extent.positions);
    qk_early_stop stop = qk_early_stop_start(o->window, o->patience);
    double losses[2 * QK_DEVICE_STEPS];
    weigh(s);
    while (result->iterations < o->iterations && result->end != QK_STOPPED_EARLY) {
        const stretch part = next_stretch(o, &stop, result->iterations);
        if (qk_is_cancelled(p)) return QK_E_CANCELLED;
        QK_TRY(run(s, draws, part, losses));
        for (int64_t i = 0; i < part.count; i++) {
            const qk_step step = schedule_at(s, part.first + i);
            const double loss = losses[2 * i] / columns;
            if (o->losses) o->losses[part.first + i] = loss;
            if (o->window == 0 || !step.counts) continue;
            const qk_verdict verdict = qk_early_stop_add(&stop, loss + (double)step.penalty * losses[2 * i + 1]);
            if (verdict == QK_NEW_BEST) {
                exchange(&s->held, &s->best);
                exchange(&s->held_bias, &s->best_bias);
                s->has_best = true;
            } else if (verdict == QK_STOP) {
                result->end = QK_STOPPED_EARLY;
            }
        }
        result->iterations += part.count;
    }
    qk_buffer_read(s->has_best ? &s->best : &s->variable, 0, s->v->variable, (size_t)p->weights * sizeof(float));
    qk_buffer_read(s->has_best ? &s->best_bias : &s->bias, 0, s->v->layer->bias, (size_t)p->rows * sizeof(float));
    return qk_device_status(s->device);
}

qk_status qk_iterate_on_device(qk_device_loss *loss, qk_step_loss *draws, qk_variables *v, qk_gradient_result *result) {
    const qk_gradient_options *o = v->problem->options;
    device_steps s = {.loss = loss, .device = loss->device, .v = v, .moves_bias = draws->found.slope != NULL};
    for (int64_t it = 0; it < o->iterations && o->losses; it++) o->losses[it] = NAN; /* of steps that are not run */
    result->iterations = 0;
    result->end = QK_ITERATIONS_DONE;
    qk_status status = steps_init(&s);
    if (status == QK_OK) status = iterate(&s, draws, result);
    steps_destroy(&s);
    return status;
}
