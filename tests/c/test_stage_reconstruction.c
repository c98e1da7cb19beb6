/* The loss behind a stage and its gradient, against loops in float64 over all rows. */
#include "reconstruction_cases.h"
#include "stage_reference.h"

/* ---- the same by obvious loops --------------------------------------------------------------- */

typedef struct {
    double loss, target_power, *row_loss, *gradient, *slope, *slope_power;
    double *gradient_size, *slope_size, *power_size; /* what rounding is relative to */
} expectation;

/* What the layer puts out for one sample, and what it should, in the order of y. */
static void outputs_of(const fixture *f, int64_t sample, const float *xs, double *z, double *y) {
    const int64_t K = f->K, O = f->geometry->outputs, P = f->positions;
    const qk_tensor one = ref_slice(&f->y, sample, sample + 1);
    for (int64_t p = 0; p < P; p++)
        for (int64_t r = 0; r < f->rows; r++) {
            const int64_t at = f->geometry->spatial ? r * P + p : p * f->rows + r;
            z[at] = f->bias[r];
            for (int64_t k = 0; k < K; k++) z[at] += (double)f->weight[r * K + k] * xs[p * f->inputs + r / O * K + k];
            y[at] = ref_value(&one, at);
        }
}

/* It holds the results of one sample, in the order of y. size: what the rounding of `pulled` is relative to. */
typedef struct {
    double *z, *y, *target, *error, *pulled, *power, *size;
} judged;

/* A value is right to a part of itself, a slope to a small part of 1; both are multiplied. */
static void judge(const fixture *f, judged j) {
    const qk_output_stage *s = &f->data->stage;
    const int64_t count = f->rows * f->positions;
    if (s->activation.kind == QK_SOFTMAX) {
        double largest = 0;
        ref_softmax_stage(s, &f->y, j.z, j.y, j.target, j.error, j.pulled, j.power);
        for (int64_t i = 0; i < count; i++) largest = fmax(largest, fmax(j.target[i], fabs(j.error[i] + j.target[i])));
        for (int64_t i = 0; i < count; i++) {
            const double share = fabs(j.error[i] + j.target[i]);
            j.size[i] = fabs(j.pulled[i]) + (sqrt(j.power[i]) + 0.02 * share) * largest;
        }
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const ref_judged one = ref_judge(s, f->geometry->spatial ? i / f->positions : i % f->rows, j.z[i], j.y[i]);
        const double value = one.error + one.target;
        j.target[i] = one.target;
        j.error[i] = one.error;
        j.pulled[i] = one.error * one.slope;
        j.power[i] = one.slope * one.slope;
        j.size[i] = fabs(one.error) * (fabs(one.slope) + 0.02) + fabs(one.slope) * (fabs(value) + fabs(one.target));
    }
}

static expectation expectation_of(const fixture *f, const int64_t *samples, int64_t count) {
    const int64_t K = f->K, O = f->geometry->outputs, P = f->positions, rows = f->rows;
    const double columns = (double)(count * P);
    expectation e = {.row_loss = MEMORY(double, rows),
                     .gradient = MEMORY(double, rows * K),
                     .slope = MEMORY(double, rows),
                     .slope_power = MEMORY(double, rows),
                     .gradient_size = MEMORY(double, rows * K),
                     .slope_size = MEMORY(double, rows),
                     .power_size = MEMORY(double, rows)};
    float *xs = MEMORY(float, P * f->inputs);
    double *memory = MEMORY(double, 7 * rows * P);
    const judged j = {memory,
                      memory + rows * P,
                      memory + 2 * rows * P,
                      memory + 3 * rows * P,
                      memory + 4 * rows * P,
                      memory + 5 * rows * P,
                      memory + 6 * rows * P};
    for (int64_t s = 0; s < count; s++) {
        ref_inputs(f->geometry, &f->x, samples[s], xs);
        outputs_of(f, samples[s], xs, j.z, j.y);
        judge(f, j);
        for (int64_t p = 0; p < P; p++)
            for (int64_t r = 0; r < rows; r++) {
                const int64_t at = f->geometry->spatial ? r * P + p : p * rows + r;
                const float *x = xs + p * f->inputs + r / O * K;
                e.row_loss[r] += j.error[at] * j.error[at] / columns;
                e.target_power += j.target[at] * j.target[at] / columns;
                e.slope[r] += 2 * j.pulled[at] / columns;
                e.slope_size[r] += 2 * j.size[at] / columns;
                e.slope_power[r] += j.power[at] / columns;
                e.power_size[r] += (j.power[at] + 0.05 * sqrt(j.power[at])) / columns;
                for (int64_t k = 0; k < K; k++) {
                    e.gradient[r * K + k] += 2 * j.pulled[at] * x[k] / columns;
                    e.gradient_size[r * K + k] += 2 * j.size[at] * fabs((double)x[k]) / columns;
                }
            }
    }
    for (int64_t r = 0; r < rows; r++) e.loss += e.row_loss[r];
    free(memory);
    free(xs);
    return e;
}

static void expectation_free(expectation *e) {
    void *arrays[] = {e->row_loss,      e->gradient,   e->slope,     e->slope_power,
                      e->gradient_size, e->slope_size, e->power_size};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static bool near(double found, double expected, double size) { return fabs(found - expected) <= 2e-5 * size + 1e-9; }

static void check_samples(const fixture *f, const int64_t *samples, int64_t count) {
    expectation e = expectation_of(f, samples, count);
    qk_reconstruction_result r = result_new(f);
    reconstruct(f, f->bias, samples, count, &r);
    CHECK(near(r.loss, e.loss, e.loss));
    CHECK(near(*r.target_power, e.target_power, e.target_power));
    for (int64_t i = 0; i < f->rows; i++) {
        CHECK(near(r.row_loss[i], e.row_loss[i], e.row_loss[i]));
        CHECK(near(r.slope[i], e.slope[i], e.slope_size[i]));
        CHECK(near(r.slope_power[i], e.slope_power[i], e.power_size[i]));
    }
    for (int64_t i = 0; i < f->rows * f->K; i++) CHECK(near(r.gradient[i], e.gradient[i], e.gradient_size[i]));
    result_free(&r);
    expectation_free(&e);
}

static void check_stage(const ref_case *c, qk_dtype dtype, const qk_output_stage *stage) {
    fixture f = fixture_new(c, dtype, stage, 1);
    int64_t *samples = backwards(&f);
    check_samples(&f, samples, f.data->count < 5 ? f.data->count : 5);
    check_samples(&f, samples + 1, 1);
    free(samples);
    fixture_free(&f);
}

static void the_loss_behind_every_activation(void) {
    for (int i = 0; i < CASES; i++)
        for (int kind = 0; kind < REF_ACTIVATIONS; kind++) {
            const qk_output_stage stage = {.activation = ref_activations[kind]};
            check_stage(case_of(i), (qk_dtype)((i + kind) % 3), &stage);
        }
}

static void the_loss_behind_a_slope_of_each_output(void) {
    enum { MOST_ROWS = 140 };
    qk_random random = {1};
    float *slopes = qk_floats(&random, MOST_ROWS, -1, 1);
    const qk_output_stage stage = {.activation = {.kind = QK_LEAKY_RELU}, .slopes = slopes};
    for (int i = 0; i < CASES; i++) check_stage(case_of(i), QK_I8, &stage);
    free(slopes);
}

static void the_loss_behind_softmax(void) {
    for (int i = 0; i < CASES; i++)
        for (int axis = 1; axis < case_of(i)->x_ndim; axis++) {
            const qk_output_stage stage = {.activation = {.kind = QK_SOFTMAX}, .axis = axis};
            check_stage(case_of(i), (qk_dtype)((i + axis) % 3), &stage);
        }
}

/* Numbers with few bits, so that z is exact and falls on the same side of every rounding; none is where f bends. */
static void the_loss_behind_a_grid(void) {
    const qk_activation activations[] = {
        {QK_NO_ACTIVATION, 0, 0}, {QK_CLIP, 0, 2}, {QK_LEAKY_RELU, 0.25f, 0}, {QK_HARD_SIGMOID, 0.25f, 0.5f}};
    for (int i = 0; i < CASES; i++)
        for (int kind = 0; kind < 8; kind++) {
            const qk_output_stage stage = {.activation = activations[kind % 4],
                                           .folded = kind > 3,
                                           .quantized = true,
                                           .affine = {kind % 2 ? 0.25f : 0.375f, 3},
                                           .grid = {.qmin = 0, .qmax = 15}};
            fixture f = fixture_new(case_of(i), QK_F32, &stage, 1);
            float *x = (float *)f.x.data;
            for (int64_t j = 0; j < ref_elements(&f.x); j++) x[j] = rintf(8 * x[j]) / 8;
            for (int64_t j = 0; j < f.rows * f.K; j++) f.weight[j] = rintf(4 * f.weight[j]) / 4;
            for (int64_t j = 0; j < f.rows; j++) f.bias[j] = rintf(8 * f.bias[j]) / 8 + 0x1p-6f;
            int64_t *samples = backwards(&f);
            check_samples(&f, samples, 3);
            free(samples);
            fixture_free(&f);
        }
}

/* ---- the derivative -------------------------------------------------------------------------- */

static double loss_with(const fixture *f, float *at, float value, const int64_t *samples, int64_t count) {
    qk_reconstruction_result loss = {0};
    const float kept = *at;
    *at = value;
    reconstruct(f, f->bias, samples, count, &loss);
    *at = kept;
    return loss.loss;
}

/* Differences over one and over two steps, put together so that the third derivative falls out. */
static void check_differences(const ref_case *c, const qk_output_stage *stage) {
    enum { COUNT = 3, SOME = 12 };
    const float step = 0.03125f;
    fixture f = fixture_new(c, QK_F32, stage, 2);
    int64_t *samples = backwards(&f);
    qk_reconstruction_result r = result_new(&f);
    reconstruct(&f, f.bias, samples, COUNT, &r);
    const int64_t weights = f.rows * f.K, stride = (weights + f.rows) / SOME + 1;
    for (int64_t i = 0; i < weights + f.rows; i += stride) {
        float *at = i < weights ? f.weight + i : f.bias + (i - weights);
        double d[2];
        for (int far = 0; far < 2; far++) {
            const float up = *at + step * (float)(1 + far), down = *at - step * (float)(1 + far);
            d[far] = loss_with(&f, at, up, samples, COUNT) - loss_with(&f, at, down, samples, COUNT);
        }
        const double difference = (8 * d[0] - d[1]) / (12 * (double)step);
        CHECK(fabs((i < weights ? r.gradient[i] : r.slope[i - weights]) - difference) <= 1e-4 * (0.1 + r.loss));
    }
    result_free(&r);
    free(samples);
    fixture_free(&f);
}

static void the_gradient_is_the_difference_of_the_loss(void) {
    const qk_activation_kind smooth[] = {QK_SIGMOID, QK_TANH, QK_GELU, QK_GELU_TANH};
    for (int i = 0; i < CASES; i++) {
        check_differences(case_of(i), &(qk_output_stage){.activation = {.kind = smooth[i % 4]}});
        for (int axis = 1; axis < case_of(i)->x_ndim; axis++)
            check_differences(case_of(i), &(qk_output_stage){.activation = {.kind = QK_SOFTMAX}, .axis = axis});
    }
}

/* ---- what does not matter -------------------------------------------------------------------- */

/* Elementwise, over the outputs, over positions; with a grid. */
static const qk_output_stage some_stages[] = {
    {.activation = {.kind = QK_GELU}, .quantized = true, .affine = {0.2f, 0}, .grid = {.qmin = -8, .qmax = 7}},
    {.activation = {.kind = QK_SOFTMAX}, .axis = 1},
    {.activation = {.kind = QK_SOFTMAX}, .axis = 2, .quantized = true, .affine = {0.01f, 0}, .grid = {.qmax = 90}},
};
enum { SOME_STAGES = sizeof some_stages / sizeof *some_stages };
static bool fits(const ref_case *c, const qk_output_stage *s) { return s->axis < c->x_ndim; }

static void threads_do_not_change_a_bit(void) {
    for (int i = 0; i < CASES; i++)
        for (int s = 0; s < SOME_STAGES; s++) {
            if (!fits(case_of(i), &some_stages[s])) continue;
            fixture one = fixture_new(case_of(i), QK_I8, &some_stages[s], 1);
            int64_t *samples = backwards(&one);
            qk_reconstruction_result a = result_new(&one), b = result_new(&one);
            reconstruct(&one, one.bias, samples, one.data->count, &a);
            for (int threads = 2; threads <= 3; threads++) {
                fixture many = fixture_new(case_of(i), QK_I8, &some_stages[s], threads);
                reconstruct(&many, many.bias, samples, many.data->count, &b);
                check_same_result(&one, &a, &b);
                fixture_free(&many);
            }
            result_free(&a);
            result_free(&b);
            free(samples);
            fixture_free(&one);
        }
}

static void calls_do_not_see_each_other_nor_what_is_not_wanted(void) {
    for (int i = 0; i < CASES; i++)
        for (int s = 0; s < SOME_STAGES; s++) {
            if (!fits(case_of(i), &some_stages[s])) continue;
            fixture f = fixture_new(case_of(i), QK_U8, &some_stages[s], 1);
            int64_t *samples = backwards(&f);
            qk_reconstruction_result fresh = result_new(&f), used = result_new(&f), step = result_new(&f);
            reconstruct(&f, f.bias, samples, 2, &fresh);
            double *power = step.mean_power; /* a step without it may go by Winograd's filtering: rounded differently */
            step.mean_power = NULL;
            reconstruct(&f, f.bias, samples, 2, &step);
            step.mean_power = power;
            qk_reconstruction r;
            qk_blas_enter();
            CHECK(qk_reconstruction_init(&r, f.data, f.data->count, f.data->count, f.pool) == QK_OK);
            qk_reconstruct(&r, f.weight, NULL, samples, f.data->count, &used);
            qk_reconstruct(&r, f.weight, f.bias, samples, 2, &used);
            check_same_result(&f, &used, &fresh);
            for (int wanted = 0; wanted < 6; wanted++) { /* one at a time */
                qk_reconstruction_result some = {.row_loss = wanted == 0 ? used.row_loss : NULL,
                                                 .gradient = wanted == 1 ? used.gradient : NULL,
                                                 .slope = wanted == 2 ? used.slope : NULL,
                                                 .mean_power = wanted == 3 ? used.mean_power : NULL,
                                                 .target_power = wanted == 4 ? used.target_power : NULL,
                                                 .slope_power = wanted == 5 ? used.slope_power : NULL};
                qk_reconstruct(&r, f.weight, f.bias, samples, 2, &some);
                check_same_result(&f, some.gradient ? &step : &fresh, &some);
            }
            qk_reconstruction_destroy(&r);
            qk_blas_leave();
            result_free(&fresh);
            result_free(&used);
            result_free(&step);
            free(samples);
            fixture_free(&f);
        }
}

/* Inputs that are given for a call stand for the samples' own, by their place in it. */
static void inputs_may_be_given(void) {
    for (int i = 0; i < CASES; i++)
        for (int s = 0; s < SOME_STAGES; s++) {
            enum { COUNT = 3 };
            if (!fits(case_of(i), &some_stages[s])) continue;
            fixture bytes = fixture_new(case_of(i), QK_U8, &some_stages[s], 2);
            fixture floats = fixture_new(case_of(i), QK_F32, &some_stages[s], 2);
            const int64_t chosen[COUNT] = {2, 0, 1}, others[COUNT] = {1, 2, 0};
            qk_tensor inputs[COUNT];
            float *y = (float *)floats.y.data; /* the target is that of the samples all the same */
            const int64_t size = ref_elements(&bytes.y) / bytes.y.dims[0];
            for (int j = 0; j < COUNT; j++) {
                inputs[j] = floats.data->x[others[j]];
                memcpy(y + others[j] * size, (const float *)bytes.y.data + chosen[j] * size, (size_t)size * sizeof *y);
            }
            qk_reconstruction_result given = result_new(&bytes), expected = result_new(&bytes);
            reconstruct(
                &(fixture){.data = floats.data, .pool = floats.pool, .weight = bytes.weight, .bias = bytes.bias},
                bytes.bias, others, COUNT, &expected);
            qk_reconstruction r;
            qk_blas_enter();
            CHECK(qk_reconstruction_init(&r, bytes.data, bytes.data->count, COUNT, bytes.pool) == QK_OK);
            r.inputs = inputs;
            qk_reconstruct(&r, bytes.weight, bytes.bias, chosen, COUNT, &given);
            qk_reconstruction_destroy(&r);
            qk_blas_leave();
            check_same_result(&bytes, &given, &expected);
            result_free(&given);
            result_free(&expected);
            fixture_free(&bytes);
            fixture_free(&floats);
        }
}

static qk_status init_attempt(void *context) {
    const fixture *f = context;
    qk_reconstruction r;
    const qk_status status = qk_reconstruction_init(&r, f->data, 3, 3, f->pool);
    qk_reconstruction_destroy(&r);
    return status;
}

static void the_scratch_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[11], QK_F32, &some_stages[1], 1);
    qk_refuse_each_allocation(init_attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(the_loss_behind_every_activation), QK_TEST(the_loss_behind_a_slope_of_each_output),
         QK_TEST(the_loss_behind_softmax), QK_TEST(the_loss_behind_a_grid),
         QK_TEST(the_gradient_is_the_difference_of_the_loss), QK_TEST(threads_do_not_change_a_bit),
         QK_TEST(calls_do_not_see_each_other_nor_what_is_not_wanted), QK_TEST(inputs_may_be_given),
         QK_TEST(the_scratch_may_run_out_of_memory))
