/* The loop around the gradient steps: its ends, its refusals, and what it must not depend on. */
#include "gradient_cases.h"
#include "loss/training_data.h"
#include "training/early_stop.h"
#include "training/training_loop.h"

/* Counts of steps: at which early stop ends these losses, and after which the last loss of the best window was found.
 */
static void replay(const qk_gradient_options *o, const double *losses, int64_t *end, int64_t *best) {
    qk_early_stop stop = qk_early_stop_start(o->window, o->patience);
    *best = 0;
    for (*end = 1; *end <= o->iterations; ++*end) {
        const qk_verdict verdict = qk_early_stop_add(&stop, losses[*end - 1]);
        if (verdict == QK_NEW_BEST) *best = *end - 1;
        if (verdict == QK_STOP) return;
    }
}

/* Without regulariser and annealing the steps do not depend on how many there are, so a run that ends with the best
 * window shows what should have been kept. */
static void early_stop_keeps_the_best_window(void) {
    for (int kind = 0; kind < 4; kind++) {
        fixture f = fixture_new(&ref_cases[11], 1, 1);
        const int64_t weights = rows_of(&f) * f.geometry.inputs;
        qk_gradient_options o = options_of(kind & 1 ? QK_ADAQUANT : QK_ADAROUND, kind & 2);
        qk_gradient_result stopped, whole, shorter;
        double losses[STEPS], until_stop[STEPS];
        o.reg_param = 0;
        o.warm_start = 0;
        o.beta_end = o.beta_start;
        o.losses = losses;
        CHECK(train(&f, &o, &whole) == QK_OK);
        CHECK(whole.iterations == STEPS && whole.end == QK_ITERATIONS_DONE);
        o.losses = until_stop;
        o.window = 5;
        CHECK(train(&f, &o, &stopped) == QK_OK);
        int64_t end, best;
        replay(&o, losses, &end, &best);
        CHECK(stopped.end == QK_STOPPED_EARLY);
        CHECK(stopped.iterations == end && end < STEPS && best > 0);
        CHECK_SAME(until_stop, losses, stopped.iterations);
        int32_t *kept = MEMORY(int32_t, weights + rows_of(&f));
        memcpy(kept, f.new_weight, (size_t)weights * sizeof *kept);
        memcpy(kept + weights, f.new_bias, (size_t)rows_of(&f) * sizeof *kept);
        o.window = 0;
        o.iterations = best;
        CHECK(train(&f, &o, &shorter) == QK_OK);
        CHECK_SAME(f.new_weight, kept, weights);
        if (o.update_bias) CHECK_SAME(f.new_bias, kept + weights, rows_of(&f));
        for (int set = 0; set < 2; set++) CHECK_CLOSE(shorter.after[set], stopped.after[set], 1e-6);
        free(kept);
        fixture_free(&f);
    }
}

static void adaround_does_not_stop_before_its_warm_up_ends(void) {
    fixture f = fixture_new(&ref_cases[11], 1, 1);
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    o.warm_start = 0.5;
    o.window = 1;
    CHECK(train(&f, &o, &r) == QK_OK);
    CHECK(r.end == QK_STOPPED_EARLY);
    CHECK(r.iterations >= STEPS / 2 + 2 && r.iterations < STEPS); /* the first window always passes */
    fixture_free(&f);
}

static void patience_that_is_never_used_up_changes_only_what_is_kept(void) {
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    o.window = 10;
    o.patience = STEPS;
    CHECK(train(&f, &o, &r) == QK_OK);
    CHECK(r.end == QK_ITERATIONS_DONE && r.iterations == STEPS);
    fixture_free(&f);
}

/* Steps may see a part of large samples each time: the error falls as with all, along another way. */
static void steps_on_some_positions_lessen_the_error_as_much(void) {
    const ref_case large = {"pieces", {.groups = 1, .inputs = 8, .outputs = 5}, 3, {SAMPLES, 5000, 8}};
    const int64_t wanted[] = {0, 1 << 20, 1000};
    qk_gradient_result r[3];
    double losses[3][STEPS];
    for (int i = 0; i < 3; i++) {
        fixture f = fixture_new(&large, 1, 1 + i);
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        o.batch_size = 1;
        o.step_positions = wanted[i];
        o.losses = losses[i];
        /* Directly, as there is no other way where steps are cut. */
        r[i] = (qk_gradient_result){.weight_q = f.new_weight, .bias_q = f.new_bias};
        CHECK(qk_train_in_way(f.data, &f.start, &o, f.pool, QK_DIRECTLY, &r[i]) == QK_OK);
        fixture_free(&f);
    }
    CHECK_SAME(losses[1], losses[0], STEPS); /* more than there are: all */
    CHECK(memcmp(losses[2], losses[0], sizeof losses[0]) != 0);
    for (int set = 0; set < 2; set++) {
        CHECK(r[0].after[set] < 0.9 * r[0].before[set]);
        CHECK(r[2].before[set] == r[0].before[set]);
        CHECK(r[2].after[set] - r[0].after[set] <= 0.1 * (r[0].before[set] - r[0].after[set]));
    }
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void arguments_out_of_range_are_refused(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    const struct {
        int64_t batch_size, iterations;
        qk_status status;
    } tried[] = {{FITTED, 1, QK_OK}, {FITTED + 1, 1, QK_E_ARG}, {SAMPLES, 1, QK_E_ARG}, {0, 1, QK_E_ARG},
                 {-1, 1, QK_E_ARG},  {FITTED, 0, QK_E_ARG},     {FITTED, -1, QK_E_ARG}, {1, 1, QK_OK}};
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        o.batch_size = tried[i].batch_size;
        o.iterations = tried[i].iterations;
        CHECK(train(&f, &o, &r) == tried[i].status);
    }
    fixture_free(&f);
}

static void without_samples_there_is_nothing_to_train_on(void) {
    fixture f = fixture_of(&ref_cases[0], SAMPLES, 1, 1);
    const qk_gradient_options o = options_of(QK_ADAQUANT, true);
    qk_gradient_result r;
    CHECK(qk_training_data_new(&f.data, &f.geometry, NULL, 0) == QK_OK);
    double loss;
    CHECK(train(&f, &o, &r) == QK_E_NO_ROWS);
    CHECK(qk_start_loss(f.data, &f.start, f.pool, &loss) == QK_E_NO_ROWS);
    fixture_free(&f);
}

static void nan_in_the_data_is_refused(void) {
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1);
        const qk_gradient_options o = options_of(kind ? QK_ADAQUANT : QK_ADAROUND, true);
        qk_gradient_result r;
        *(float *)(kind ? f.y.data : f.x.data) = kind ? NAN : INFINITY;
        CHECK(train(&f, &o, &r) == QK_E_NONFINITE);
        fixture_free(&f);
    }
}

static bool stop_at_second_call(void *user) { return ++*(int *)user == 2; }

static void the_callback_can_cancel(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    int calls = 0;
    qk_gradient_options o = options_of(QK_ADAQUANT, true);
    qk_gradient_result r;
    o.cancelled = stop_at_second_call;
    o.user = &calls;
    CHECK(train(&f, &o, &r) == QK_E_CANCELLED);
    CHECK(calls == 2);
    CHECK(r.iterations > 0 && r.iterations < STEPS);
    fixture_free(&f);
}

static qk_status train_attempt(void *context) {
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    o.iterations = 3;
    return train(context, &o, &r);
}

static qk_status start_loss_attempt(void *context) {
    const fixture *f = context;
    double loss;
    return qk_start_loss(f->data, &f->start, f->pool, &loss);
}

static qk_status mixed_train_attempt(void *context) {
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    o.iterations = 3;
    o.drop_ratio = 0.5;
    return train(context, &o, &r);
}

static void training_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[11], 1, 1);
    qk_refuse_each_allocation(train_attempt, &f);
    qk_refuse_each_allocation(start_loss_attempt, &f);
    const qk_output_stage softmax = {.activation = {.kind = QK_SOFTMAX}, .axis = 1};
    qk_training_data_free(f.data);
    CHECK(qk_training_data_new(&f.data, &f.geometry, &softmax, HOLDOUT) == QK_OK);
    CHECK(qk_training_data_add(f.data, &f.x, &f.x, &f.y) == QK_OK);
    qk_refuse_each_allocation(mixed_train_attempt, &f);
    qk_random r = {3};
    qk_tensor bytes = ref_tensor(&r, QK_U8, f.x.ndim, f.x.dims); /* judged by moments, and descended */
    qk_training_data_free(f.data);
    CHECK(qk_training_data_new(&f.data, &f.geometry, NULL, HOLDOUT) == QK_OK);
    CHECK(qk_training_data_add(f.data, &bytes, NULL, &f.y) == QK_OK);
    qk_refuse_each_allocation(train_attempt, &f);
    ref_free(&bytes);
    fixture_free(&f);
}

/* ---- what does not matter -------------------------------------------------------------------- */

static void threads_do_not_change_a_bit(void) {
    const int threads[] = {2, 5};
    for (int i = 0; i < REF_CASES; i++) {
        fixture one = fixture_new(&ref_cases[i], 1, 1);
        qk_gradient_options o = options_of(i % 2 ? QK_ADAQUANT : QK_ADAROUND, true);
        qk_gradient_result a, b;
        double losses[STEPS], others[STEPS];
        o.iterations = 50;
        o.losses = losses;
        CHECK(train(&one, &o, &a) == QK_OK);
        o.losses = others;
        for (int t = 0; t < 2; t++) {
            fixture many = fixture_new(&ref_cases[i], 1, threads[t]);
            CHECK(train(&many, &o, &b) == QK_OK);
            CHECK_SAME(a.weight_q, b.weight_q, rows_of(&one) * one.geometry.inputs);
            CHECK_SAME(a.bias_q, b.bias_q, rows_of(&one));
            CHECK_SAME(a.before, b.before, 2);
            CHECK_SAME(a.after, b.after, 2);
            CHECK_SAME(a.power, b.power, 2);
            CHECK_SAME(losses, others, o.iterations);
            fixture_free(&many);
        }
        fixture_free(&one);
    }
}

static void the_seed_chooses_the_batches(void) {
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    double losses[3][STEPS];
    for (int run = 0; run < 3; run++) {
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        o.seed = run == 1 ? 9 : 8;
        o.losses = losses[run];
        CHECK(train(&f, &o, &r) == QK_OK);
    }
    CHECK_SAME(losses[0], losses[2], STEPS);
    CHECK(memcmp(losses[0], losses[1], sizeof losses[0]) != 0);
    fixture_free(&f);
}

/* The first step with regulariser shows in the loss of the next. */
static void the_regulariser_waits_for_the_warm_up(void) {
    enum { WARM = STEPS / 5 };
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    double losses[2][STEPS];
    for (int run = 0; run < 2; run++) {
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        o.reg_param = run ? 1 : 0;
        o.beta_start = 2; /* reaches every weight */
        o.losses = losses[run];
        CHECK(train(&f, &o, &r) == QK_OK);
    }
    CHECK_SAME(losses[0], losses[1], WARM + 1);
    CHECK(losses[0][WARM + 1] != losses[1][WARM + 1]);
    fixture_free(&f);
}

/* Powers of two, so that nothing is rounded differently. kind 0: x, y and bias in other units. 1: x in smaller units,
 * weights and scales in larger ones, which AdaQuant's learning rate would be relative to. */
static void units_do_not_matter(void) {
    for (int kind = 0; kind < 3; kind++) {
        fixture f = fixture_new(&ref_cases[12], 1, 1), g = fixture_new(&ref_cases[12], 1, 1);
        const int64_t rows = rows_of(&f), weights = rows * f.geometry.inputs;
        const qk_gradient_options o = options_of(kind == 1 ? QK_ADAQUANT : QK_ADAROUND, false);
        qk_gradient_result a, b;
        float *x = (float *)g.x.data, *y = (float *)g.y.data;
        for (int64_t i = 0; i < ref_elements(&g.x); i++) x[i] *= kind < 2 ? 0x1p10f : 0x1p-10f;
        for (int64_t i = 0; i < ref_elements(&g.y) && kind < 2; i++) y[i] *= 0x1p10f;
        for (int64_t i = 0; i < rows; i++) {
            if (kind < 2) g.bias[i] *= 0x1p10f;
            if (kind == 2) g.weight_scale[i] *= 0x1p10f;
        }
        for (int64_t i = 0; i < weights && kind == 2; i++) g.weight[i] *= 0x1p10f;
        CHECK(train(&f, &o, &a) == QK_OK);
        CHECK(train(&g, &o, &b) == QK_OK);
        CHECK_SAME(a.weight_q, b.weight_q, weights);
        CHECK(memcmp(a.weight_q, f.weight_q, (size_t)weights * sizeof(int32_t)) != 0); /* it did train */
        for (int set = 0; set < 2; set++) CHECK_CLOSE(b.after[set] / a.after[set], kind < 2 ? 0x1p20 : 1, 1e-12);
        fixture_free(&f);
        fixture_free(&g);
    }
}

/* An input that is always zero teaches nothing: its weights are rounded to nearest, as they were. */
static void dead_inputs_keep_their_weights(void) {
    for (int method = QK_ADAROUND; method <= QK_ADAQUANT; method++) {
        fixture f = fixture_new(&ref_cases[12], 1, 1); /* depthwise */
        const int64_t K = f.geometry.inputs, plane = f.x.dims[2] * f.x.dims[3];
        const qk_gradient_options o = options_of((qk_gradient_method)method, true);
        qk_gradient_result r;
        for (int64_t s = 0; s < SAMPLES; s++)
            memset((float *)f.x.data + s * f.x.dims[1] * plane, 0, (size_t)plane * sizeof(float));
        CHECK(train(&f, &o, &r) == QK_OK);
        CHECK_SAME(r.weight_q, f.weight_q, K);
        CHECK(method == QK_ADAQUANT || memcmp(r.weight_q + K, f.weight_q + K, (size_t)K * 4 * sizeof(int32_t)) != 0);
        fixture_free(&f);
    }
}

QK_TESTS(QK_TEST(early_stop_keeps_the_best_window), QK_TEST(adaround_does_not_stop_before_its_warm_up_ends),
         QK_TEST(patience_that_is_never_used_up_changes_only_what_is_kept), QK_TEST(arguments_out_of_range_are_refused),
         QK_TEST(without_samples_there_is_nothing_to_train_on), QK_TEST(nan_in_the_data_is_refused),
         QK_TEST(steps_on_some_positions_lessen_the_error_as_much), QK_TEST(the_callback_can_cancel),
         QK_TEST(training_may_run_out_of_memory), QK_TEST(threads_do_not_change_a_bit),
         QK_TEST(the_seed_chooses_the_batches), QK_TEST(the_regulariser_waits_for_the_warm_up),
         QK_TEST(units_do_not_matter), QK_TEST(dead_inputs_keep_their_weights))
