/* The gradient loops with loss and gradient from Gram matrices, and without. */
#include "gradient_cases.h"
#include "training/training_loop.h"

static qk_status train_in(qk_loss_way way, fixture *f, const qk_gradient_options *options, qk_gradient_result *result) {
    *result = (qk_gradient_result){.weight_q = f->new_weight, .bias_q = f->new_bias};
    return qk_train_in_way(f->data, &f->start, options, f->pool, way, result);
}

/* Steps, from the first on, whose losses are the same but for the last bits. */
static int steps_alike(const double *a, const double *b) {
    int step = 0;
    while (step < STEPS && qk_close(a[step] / b[step], 1, 1e-4)) step++;
    return step;
}

/* In the last bits they differ. AdaRound's weights are continuous, so all steps are alike; of AdaQuant's one that is
 * about to turn does so a step earlier, and that some time depends on the last bits of BLAS. In most runs none does. */
static void both_ways_take_the_same_steps(void) {
    int runs = 0, turned = 0;
    for (int i = 0; i < REF_CASES; i++)
        for (int kind = 0; kind < 6; kind++) {
            fixture f = fixture_new(&ref_cases[i], 1, 1);
            qk_gradient_options o = options_of(kind & 1 ? QK_ADAQUANT : QK_ADAROUND, kind & 2);
            qk_gradient_result direct, grams;
            double losses[2][STEPS];
            if (kind >= 4) o.batch_size = 1;
            o.losses = losses[0];
            CHECK(train_in(QK_DIRECTLY, &f, &o, &direct) == QK_OK);
            o.losses = losses[1];
            CHECK(train_in(QK_BY_GRAMS, &f, &o, &grams) == QK_OK);
            const int alike = steps_alike(losses[1], losses[0]);
            CHECK(alike >= (o.method == QK_ADAROUND ? STEPS : 2));
            runs += o.method == QK_ADAQUANT;
            turned += o.method == QK_ADAQUANT && alike < STEPS / 10;
            CHECK(memcmp(losses[0], losses[1], sizeof losses[0]) != 0); /* two ways they were */
            for (int set = 0; set < 2; set++) {
                CHECK_SAME(&grams.before[set], &direct.before[set], 1); /* judged by the rows */
                if (o.method == QK_ADAROUND) CHECK_CLOSE(grams.after[set] / direct.after[set], 1, 1e-2);
            }
            fixture_free(&f);
        }
    CHECK(turned <= runs / 10);
}

/* The loop's own choice is one of the two. */
static void the_cheaper_way_is_taken(void) {
    enum { WIDE = 2, GROUPED = 11 };
    const struct {
        int which;
        qk_loss_way way;
    } cases[] = {{WIDE, QK_DIRECTLY}, {GROUPED, QK_BY_GRAMS}};
    for (int i = 0; i < 2; i++) {
        fixture f = fixture_new(&ref_cases[cases[i].which], 1, 1);
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        double losses[2][STEPS];
        o.losses = losses[0];
        CHECK(train(&f, &o, &r) == QK_OK);
        o.losses = losses[1];
        CHECK(train_in(cases[i].way, &f, &o, &r) == QK_OK);
        CHECK_SAME(losses[0], losses[1], STEPS);
        fixture_free(&f);
    }
}

/* An activation behind the layer, or inputs that differ from step to step. */
static void without_a_fixed_quadratic_loss_there_is_one_way(void) {
    const qk_output_stage relu = {.activation = {.kind = QK_CLIP, .a = 0, .b = INFINITY}};
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_of(&ref_cases[11], SAMPLES, 1, 1);
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        double losses[2][STEPS];
        if (kind == 1) o.drop_ratio = 0.5;
        CHECK(qk_training_data_new(&f.data, &f.geometry, kind == 0 ? &relu : NULL, HOLDOUT) == QK_OK);
        CHECK(qk_training_data_add(f.data, &f.x, &f.x, &f.y) == QK_OK);
        o.losses = losses[0];
        CHECK(train_in(QK_DIRECTLY, &f, &o, &r) == QK_OK);
        o.losses = losses[1];
        CHECK(train_in(QK_BY_GRAMS, &f, &o, &r) == QK_OK);
        CHECK_SAME(losses[0], losses[1], STEPS);
        fixture_free(&f);
    }
}

static bool stop(void *user) { return ++*(int *)user == 1; }

static void the_callback_can_cancel_before_the_first_step(void) {
    fixture f = fixture_of(&ref_cases[11], 40, 1, 1);
    int calls = 0;
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    feed(&f, HOLDOUT);
    o.cancelled = stop;
    o.user = &calls;
    CHECK(train_in(QK_BY_GRAMS, &f, &o, &r) == QK_E_CANCELLED);
    CHECK(calls == 1 && r.iterations == 0);
    fixture_free(&f);
}

static void threads_do_not_change_a_bit(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int way = QK_DIRECTLY; way <= QK_BY_GRAMS; way++) {
            fixture one = fixture_new(&ref_cases[i], 1, 1), many = fixture_new(&ref_cases[i], 1, 5);
            qk_gradient_options o = options_of(i % 2 ? QK_ADAQUANT : QK_ADAROUND, true);
            qk_gradient_result a, b;
            double losses[2][STEPS];
            o.iterations = 50;
            o.losses = losses[0];
            CHECK(train_in((qk_loss_way)way, &one, &o, &a) == QK_OK);
            o.losses = losses[1];
            CHECK(train_in((qk_loss_way)way, &many, &o, &b) == QK_OK);
            CHECK_SAME(losses[0], losses[1], o.iterations);
            CHECK_SAME(a.weight_q, b.weight_q, rows_of(&one) * one.geometry.inputs);
            CHECK_SAME(a.bias_q, b.bias_q, rows_of(&one));
            fixture_free(&one);
            fixture_free(&many);
        }
}

/* Its inputs are 8 bits, whose moments judge: those of the samples' Gram matrices, or of the rows. */
static fixture bytes_new(const ref_case *c, qk_dtype dtype, int threads) {
    fixture f = fixture_of(c, SAMPLES, 1, threads);
    qk_random r = {9};
    free((void *)f.x.data);
    free((void *)f.y.data);
    f.x = ref_tensor(&r, dtype, f.x.ndim, f.x.dims);
    f.y = ref_target(&r, &f.geometry, &f.x);
    feed(&f, HOLDOUT);
    return f;
}

static void check_bytes(const ref_case *c, qk_dtype dtype, qk_gradient_method method, int *others) {
    fixture f = bytes_new(c, dtype, 1), g = bytes_new(c, dtype, 5);
    qk_gradient_options o = options_of(method, true);
    qk_gradient_result direct, grams, many;
    double losses[2][STEPS];
    o.losses = losses[0];
    CHECK(train_in(QK_DIRECTLY, &f, &o, &direct) == QK_OK);
    o.losses = losses[1];
    CHECK(train_in(QK_BY_GRAMS, &f, &o, &grams) == QK_OK);
    CHECK(steps_alike(losses[1], losses[0]) >= (method == QK_ADAROUND ? STEPS : 2));
    *others += grams.before[QK_FITTED] != direct.before[QK_FITTED];
    CHECK_SAME(&grams.before[QK_HELD_OUT], &direct.before[QK_HELD_OUT], 1);
    CHECK_CLOSE(grams.before[QK_FITTED] / direct.before[QK_FITTED], 1, 1e-5);
    for (int set = 0; set < 2; set++) {
        CHECK_CLOSE(grams.power[set] / direct.power[set], 1, 1e-5);
        if (method == QK_ADAROUND) CHECK_CLOSE(grams.after[set] / direct.after[set], 1, 1e-2);
    }
    o.losses = losses[0];
    CHECK(train_in(QK_BY_GRAMS, &g, &o, &many) == QK_OK);
    CHECK_SAME(losses[0], losses[1], STEPS);
    CHECK_SAME(f.new_weight, g.new_weight, rows_of(&f) * f.geometry.inputs);
    CHECK_SAME(f.new_bias, g.new_bias, rows_of(&f));
    CHECK_SAME(many.after, grams.after, 2);
    fixture_free(&f);
    fixture_free(&g);
}

static void bytes_are_judged_alike(void) {
    int others = 0; /* two ways they were */
    for (int i = 0; i < REF_CASES; i++)
        for (int kind = 0; kind < 4; kind++)
            check_bytes(&ref_cases[i], kind & 1 ? QK_I8 : QK_U8, kind & 2 ? QK_ADAQUANT : QK_ADAROUND, &others);
    CHECK(others > 2 * REF_CASES);
}

static void what_overflows_is_refused(void) {
    fixture f = bytes_new(&ref_cases[11], QK_U8, 1);
    qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    *(float *)f.y.data = 1e30f;
    CHECK(train_in(QK_BY_GRAMS, &f, &o, &r) == train_in(QK_DIRECTLY, &f, &o, &r));
    *(float *)f.y.data = 3e38f;
    CHECK(train_in(QK_DIRECTLY, &f, &o, &r) == QK_E_TOO_LARGE);
    CHECK(train_in(QK_BY_GRAMS, &f, &o, &r) == QK_E_TOO_LARGE);
    fixture_free(&f);
}

static qk_status train_attempt(void *context) {
    qk_gradient_options o = options_of(QK_ADAQUANT, true);
    qk_gradient_result r;
    o.iterations = 3;
    return train_in(QK_BY_GRAMS, context, &o, &r);
}

static void training_may_run_out_of_memory(void) {
    for (int bytes = 0; bytes < 2; bytes++) {
        fixture f = bytes ? bytes_new(&ref_cases[11], QK_U8, 1) : fixture_new(&ref_cases[11], 1, 1);
        qk_refuse_each_allocation(train_attempt, &f);
        fixture_free(&f);
    }
}

QK_TESTS(QK_TEST(both_ways_take_the_same_steps), QK_TEST(the_cheaper_way_is_taken),
         QK_TEST(without_a_fixed_quadratic_loss_there_is_one_way),
         QK_TEST(the_callback_can_cancel_before_the_first_step), QK_TEST(threads_do_not_change_a_bit),
         QK_TEST(bytes_are_judged_alike), QK_TEST(what_overflows_is_refused), QK_TEST(training_may_run_out_of_memory))
