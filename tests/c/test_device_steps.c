/* The gradient loops on a device take the steps that they take on the processor. */
#include "device_cases.h"
#include "gradient_cases.h"
#include "training/training_loop.h"

enum { FEW_STEPS = 20, MORE_STEPS = 150 };

/* Losses of a run on a device or, without one, on the processor, from the samples. */
static qk_gradient_result run(fixture *f, qk_gradient_options o, qk_device *device, double *losses) {
    qk_gradient_result r = {.weight_q = f->new_weight, .bias_q = f->new_bias};
    o.device = device;
    o.losses = losses;
    CHECK(qk_train_in_way(f->data, &f->start, &o, f->pool, QK_DIRECTLY, &r) == QK_OK);
    CHECK(r.on_device == (device != NULL));
    return r;
}

/* Steps, from the first on, whose losses differ only as sums of float32 do. */
static int steps_alike(const double *a, const double *b, int64_t count) {
    int step = 0;
    while (step < count && qk_close(a[step] / b[step], 1, 1e-3)) step++;
    return step;
}

/* AdaRound's weights are continuous, so that all steps are alike; of AdaQuant's, one that is about to turn does so a
 * step earlier. */
static void compare(qk_device *d, fixture *f, qk_gradient_options o) {
    double losses[3][STEPS];
    const int64_t weights = rows_of(f) * f->geometry.inputs;
    int32_t *first = MEMORY(int32_t, weights);
    const qk_gradient_result want = run(f, o, NULL, losses[0]);
    const qk_gradient_result have = run(f, o, d, losses[1]);
    memcpy(first, f->new_weight, (size_t)weights * sizeof *first);
    const qk_gradient_result again = run(f, o, d, losses[2]);
    CHECK_SAME(losses[2], losses[1], o.iterations); /* the same device gives the same bits */
    CHECK_SAME(again.after, have.after, 2);
    CHECK_SAME(f->new_weight, first, weights);
    if (o.window == 0)
        CHECK(steps_alike(losses[1], losses[0], o.iterations) >= (o.method == QK_ADAROUND ? o.iterations : 2));
    CHECK(have.iterations > 0 && have.iterations <= o.iterations);
    for (int set = 0; set < 2; set++) {
        CHECK(have.samples[set] == want.samples[set]);
        if (have.samples[set] == 0) continue;
        CHECK_CLOSE(have.before[set] / want.before[set], 1, 1e-3);
        CHECK_CLOSE(have.power[set] / want.power[set], 1, 1e-5);
        CHECK(have.after[set] <= have.before[set] || set == QK_FITTED);
        if (o.method == QK_ADAROUND) CHECK_CLOSE(have.after[set] / want.after[set], 1, 3e-2);
    }
    free(first);
}

static void every_layer_takes_the_same_steps(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    for (int i = 0; i < REF_CASES; i++)
        for (int kind = 0; kind < 2; kind++) {
            fixture f = fixture_new(&ref_cases[i], 1, 1);
            qk_gradient_options o = options_of(kind ? QK_ADAQUANT : QK_ADAROUND, i % 2);
            o.iterations = FEW_STEPS;
            compare(d, &f, o);
            fixture_free(&f);
        }
    qk_device_close(d);
}

static void early_stop_ends_them_and_goes_back(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    int stopped = 0;
    for (int kind = 0; kind < 6; kind++) {
        fixture f = fixture_new(&ref_cases[11], 1, 1);
        qk_gradient_options o = options_of(kind & 1 ? QK_ADAQUANT : QK_ADAROUND, true);
        double losses[2][STEPS];
        o.window = kind < 2 ? 10 : kind < 4 ? 70 : 1; /* within a stretch of steps, beyond one, each step */
        o.patience = kind < 4 ? 0 : 5;
        o.learning_rate *= 4;
        o.iterations = MORE_STEPS;
        const qk_gradient_result want = run(&f, o, NULL, losses[0]), have = run(&f, o, d, losses[1]);
        if (!(kind & 1)) CHECK(have.iterations == want.iterations && have.end == want.end);
        for (int64_t it = have.iterations; it < MORE_STEPS; it++) CHECK(isnan(losses[1][it]));
        stopped += have.end == QK_STOPPED_EARLY;
        fixture_free(&f);
    }
    CHECK(stopped > 0);
    qk_device_close(d);
}

/* Behind a layer, inputs of both graphs, and 8-bit inputs. */
static void stages_and_mixed_inputs_take_the_same_steps(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    const qk_output_stage stages[] = {{.activation = {.kind = QK_CLIP, .a = 0, .b = INFINITY}},
                                      {.activation = {.kind = QK_SILU}}};
    for (int stage = 0; stage < 2; stage++)
        for (int kind = 0; kind < 4; kind++) {
            fixture f = fixture_of(&ref_cases[5], SAMPLES, 1, 1);
            qk_random random = {4};
            qk_gradient_options o = options_of(kind & 1 ? QK_ADAQUANT : QK_ADAROUND, true);
            qk_tensor x_float = ref_tensor(&random, QK_F32, f.x.ndim, f.x.dims);
            if (kind & 2) {
                free((void *)f.x.data);
                f.x = ref_tensor(&random, stage ? QK_I8 : QK_U8, f.x.ndim, f.x.dims);
                o.drop_ratio = 0.7;
            }
            CHECK(qk_training_data_new(&f.data, &f.geometry, &stages[stage], kind & 1 ? 0 : HOLDOUT) == QK_OK);
            CHECK(qk_training_data_add(f.data, &f.x, &x_float, &f.y) == QK_OK);
            o.iterations = FEW_STEPS;
            compare(d, &f, o);
            fixture_free(&f);
            ref_free(&x_float);
        }
    qk_device_close(d);
}

static void softmax_is_left_to_the_processor(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    const qk_output_stage softmax = {.activation = {.kind = QK_SOFTMAX}, .axis = -1};
    fixture f = fixture_of(&ref_cases[0], SAMPLES, 1, 1);
    CHECK(qk_training_data_new(&f.data, &f.geometry, &softmax, HOLDOUT) == QK_OK);
    CHECK(qk_training_data_add(f.data, &f.x, NULL, &f.y) == QK_OK);
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    o.device = d;
    CHECK(train(&f, &o, &r) == QK_OK);
    CHECK(!r.on_device && r.iterations == STEPS);
    fixture_free(&f);
    qk_device_close(d);
}

static bool stop(void *user) { return ++*(int *)user == 2; }

static bool lose(void *device) {
    qk_device_lose(device, "its cable was pulled");
    return false;
}

static void what_ends_them_is_told(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    int calls = 0;
    o.device = d;
    o.cancelled = stop;
    o.user = &calls;
    CHECK(train(&f, &o, &r) == QK_E_CANCELLED);
    CHECK(calls == 2 && r.iterations > 0 && r.iterations < STEPS);
    o.cancelled = lose;
    o.user = d;
    CHECK(train(&f, &o, &r) == QK_E_DEVICE);
    o.cancelled = NULL;
    CHECK(train(&f, &o, &r) == QK_E_DEVICE);
    CHECK(says(d, "its cable was pulled"));
    qk_device_close(d);
    int refused = 0;
    qk_status status = QK_E_DEVICE_NOMEM;
    o.iterations = FEW_STEPS;
    for (int64_t most = 10000; status != QK_OK; most += most / 4) {
        o.device = device_new(most);
        status = train(&f, &o, &r);
        refused += status == QK_E_DEVICE_NOMEM;
        CHECK(status == QK_E_DEVICE_NOMEM || status == QK_OK);
        qk_device_close(o.device);
    }
    CHECK(refused > 3);
    fixture_free(&f);
}

typedef struct {
    fixture f;
    qk_device *device;
} on_device;

static qk_status attempt(void *context) {
    qk_gradient_options o = options_of(QK_ADAQUANT, true);
    qk_gradient_result r;
    on_device *c = context;
    o.iterations = 3;
    o.device = c->device;
    return train(&c->f, &o, &r);
}

static void the_processors_memory_may_run_out(void) {
    on_device c = {fixture_new(&ref_cases[11], 1, 1), device_new(0)};
    if (c.device) qk_refuse_each_allocation(attempt, &c);
    qk_device_close(c.device);
    fixture_free(&c.f);
}

QK_TESTS(QK_TEST(every_layer_takes_the_same_steps), QK_TEST(early_stop_ends_them_and_goes_back),
         QK_TEST(stages_and_mixed_inputs_take_the_same_steps), QK_TEST(softmax_is_left_to_the_processor),
         QK_TEST(what_ends_them_is_told), QK_TEST(the_processors_memory_may_run_out))
