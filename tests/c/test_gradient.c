/* The integers that the gradient loops find, judged on the rows themselves. */
#include "gradient_cases.h"
#include "loss/training_data.h"

/* ---- the same by obvious loops --------------------------------------------------------------- */

/* Means over the rows of one set: of |W^ x + b - y|^2, of |y|^2, and for each output of its error and squared error. */
typedef struct {
    double loss, power, mean_error[200], row_loss[200];
    int64_t samples;
} expectation;

static expectation expectation_of(const fixture *f, const int32_t *weight_q, const double *bias, qk_set set) {
    const qk_geometry *g = &f->geometry;
    const int64_t K = g->inputs, rows = rows_of(f), inputs = g->groups * K, positions = ref_positions(g, &f->x);
    float *xs = MEMORY(float, positions * inputs), *ys = MEMORY(float, positions * rows);
    expectation e = {0};
    for (int64_t sample = 0; sample < f->x.dims[0]; sample++) {
        const int holdout = f->data->holdout;
        if ((holdout > 0 && (sample + 1) % holdout == 0) != (set == QK_HELD_OUT)) continue;
        e.samples++;
        ref_inputs(g, &f->x, sample, xs);
        ref_outputs(g, &f->y, sample, ys);
        for (int64_t p = 0; p < positions; p++)
            for (int64_t o = 0; o < rows; o++) {
                double error = bias[o] - ys[p * rows + o];
                for (int64_t k = 0; k < K; k++)
                    error += (double)f->weight_scale[o] * (weight_q[o * K + k] - f->weight_zp[o]) *
                             xs[p * inputs + o / g->outputs * K + k];
                e.loss += error * error;
                e.row_loss[o] += error * error;
                e.mean_error[o] += error;
                e.power += (double)ys[p * rows + o] * ys[p * rows + o];
            }
    }
    const double n = (double)(e.samples * positions);
    e.loss /= n;
    e.power /= n;
    for (int64_t o = 0; o < rows; o++) e.mean_error[o] /= n, e.row_loss[o] /= n;
    free(ys);
    free(xs);
    return e;
}

/* Each weight is its float value rounded down or up, or as near to that as the grid goes. */
static void check_floor_or_ceil(const fixture *f, const int32_t *weight_q) {
    for (int64_t i = 0; i < rows_of(f) * f->geometry.inputs; i++) {
        const int64_t row = i / f->geometry.inputs;
        const double floor_q = floor((double)(f->weight[i] / f->weight_scale[row])) + f->weight_zp[row];
        const double lower = fmin(fmax(floor_q, f->start.qmin), f->start.qmax);
        const double upper = fmin(fmax(floor_q + 1, f->start.qmin), f->start.qmax);
        CHECK(weight_q[i] == lower || weight_q[i] == upper);
    }
}

/* Matrix, matrices, a wide matrix, 1-D, 3x3, grouped, depthwise, depth multiplier, 3-D, transposed and grouped. */
static const int some_cases[] = {0, 1, 2, 3, 5, 11, 12, 14, 15, 25};
enum { SOME_CASES = sizeof some_cases / sizeof *some_cases };

/* An output is better on the samples that judge, or it is what it was. */
static void check_improved(const fixture *f, const qk_gradient_result *r, const expectation *start,
                           const expectation *end, bool update_bias) {
    const int64_t K = f->geometry.inputs;
    int64_t better = 0;
    for (int64_t i = 0; i < rows_of(f); i++) {
        bool same = memcmp(r->weight_q + i * K, f->weight_q + i * K, (size_t)K * sizeof(int32_t)) == 0;
        if (update_bias) same &= r->bias_q[i] == (int32_t)rintf(f->bias[i] / f->bias_scale[i]);
        better += !same;
        CHECK(same || end->row_loss[i] < start->row_loss[i] * (1 + 1e-5));
    }
    CHECK(r->improved == better);
}

static void check_result(const fixture *f, const qk_gradient_options *o, const qk_gradient_result *r) {
    const int64_t K = f->geometry.inputs, rows = rows_of(f);
    double *before = MEMORY(double, rows), *after = MEMORY(double, rows);
    for (int64_t i = 0; i < rows; i++) {
        before[i] = after[i] = f->bias[i];
        if (o->update_bias) after[i] = (double)f->bias_scale[i] * r->bias_q[i];
        if (!o->update_bias) CHECK(r->bias_q[i] == 12345);
    }
    for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
        const expectation start = expectation_of(f, f->weight_q, before, (qk_set)set);
        const expectation end = expectation_of(f, r->weight_q, after, (qk_set)set);
        CHECK(fabs(r->before[set] - start.loss) <= 1e-4 * start.loss);
        CHECK(fabs(r->after[set] - end.loss) <= 1e-4 * start.loss);
        CHECK(fabs(r->power[set] - start.power) <= 1e-4 * start.power);
        CHECK(r->samples[set] == start.samples);
        if (set == QK_HELD_OUT) check_improved(f, r, &start, &end, o->update_bias);
        if (set == QK_HELD_OUT) CHECK(r->after[set] <= r->before[set]);
    }
    CHECK(r->iterations == o->iterations && r->end == QK_ITERATIONS_DONE);
    for (int64_t i = 0; i < rows * K; i++) CHECK(r->weight_q[i] >= f->start.qmin && r->weight_q[i] <= f->start.qmax);
    if (o->method == QK_ADAROUND) check_floor_or_ceil(f, r->weight_q);
    free(before);
    free(after);
}

static void results_are_what_they_claim(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int kind = 0; kind < 4; kind++) {
            fixture f = fixture_new(&ref_cases[some_cases[i]], (uint64_t)kind, 1);
            const qk_gradient_options o = options_of(kind & 1 ? QK_ADAQUANT : QK_ADAROUND, kind & 2);
            qk_gradient_result r;
            for (int64_t j = 0; j < rows_of(&f); j++) f.new_bias[j] = 12345;
            CHECK(train(&f, &o, &r) == QK_OK);
            check_result(&f, &o, &r);
            fixture_free(&f);
        }
}

/* More samples than are judged at a time. */
static void many_samples_are_judged_in_turns(void) {
    fixture f = fixture_of(&ref_cases[3], 75, 1, 1);
    feed(&f, 2);
    const qk_gradient_options o = options_of(QK_ADAROUND, true);
    qk_gradient_result r;
    CHECK(train(&f, &o, &r) == QK_OK);
    check_result(&f, &o, &r);
    CHECK(r.samples[QK_FITTED] == 38 && r.samples[QK_HELD_OUT] == 37);
    fixture_free(&f);
}

static void without_held_out_samples_their_loss_is_nan(void) {
    fixture f = fixture_of(&ref_cases[5], SAMPLES, 1, 1);
    feed(&f, 0);
    qk_gradient_options o = options_of(QK_ADAQUANT, true);
    qk_gradient_result r;
    o.batch_size = SAMPLES;
    CHECK(train(&f, &o, &r) == QK_OK);
    CHECK(r.samples[QK_FITTED] == SAMPLES && r.samples[QK_HELD_OUT] == 0);
    CHECK(isnan(r.before[QK_HELD_OUT]) && isnan(r.after[QK_HELD_OUT]));
    CHECK(isfinite(r.before[QK_FITTED]) && isfinite(r.after[QK_FITTED]));
    fixture_free(&f);
}

/* Also where some samples judge, in turns. */
static void the_loss_of_the_start_is_that_of_all_samples(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int holdout = 0; holdout < 4; holdout += 2) {
            fixture f = fixture_of(&ref_cases[some_cases[i]], 70, 1, 1);
            feed(&f, 0);
            double *bias = MEMORY(double, rows_of(&f)), loss;
            for (int64_t j = 0; j < rows_of(&f); j++) bias[j] = f.bias[j];
            const expectation e = expectation_of(&f, f.weight_q, bias, QK_FITTED);
            feed(&f, holdout);
            CHECK(qk_start_loss(f.data, &f.start, f.pool, &loss) == QK_OK);
            CHECK(fabs(loss - e.loss) <= 1e-5 * e.loss);
            free(bias);
            fixture_free(&f);
        }
}

/* ---- what training achieves ------------------------------------------------------------------ */

static void adaround_improves_on_rounding_to_nearest(void) {
    double ratio = 0;
    for (int i = 1; i < SOME_CASES; i++) { /* the first has one row per sample: too little to learn from */
        fixture f = fixture_new(&ref_cases[some_cases[i]], 1, 1);
        qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        o.iterations = 5 * STEPS;
        CHECK(train(&f, &o, &r) == QK_OK);
        CHECK(r.after[QK_FITTED] <= r.before[QK_FITTED]);
        CHECK(r.after[QK_HELD_OUT] <= r.before[QK_HELD_OUT]);
        ratio += r.after[QK_HELD_OUT] / r.before[QK_HELD_OUT] / (SOME_CASES - 1);
        fixture_free(&f);
    }
    CHECK(ratio < 0.9);
}

/* AdaQuant needs small steps where the start is good, as many weights turn at once otherwise. */
static void adaquant_improves_on_a_good_start(void) {
    const int cases[] = {2, 11}; /* wide matrix, grouped */
    for (int i = 0; i < 2; i++) {
        fixture f = fixture_new(&ref_cases[cases[i]], 1, 1);
        qk_gradient_options o = options_of(QK_ADAQUANT, false);
        qk_gradient_result r;
        o.iterations = 5 * STEPS;
        o.batch_size = FITTED;
        o.learning_rate = 1e-5;
        CHECK(train(&f, &o, &r) == QK_OK);
        CHECK(r.after[QK_FITTED] < 0.9 * r.before[QK_FITTED]);
        CHECK(r.after[QK_HELD_OUT] < 0.9 * r.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

/* The target wants every weight 1.6 steps higher than its float value: out of AdaRound's reach, not of AdaQuant's. */
static void only_adaquant_leaves_floor_and_ceil(void) {
    for (int method = QK_ADAROUND; method <= QK_ADAQUANT; method++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1);
        const int64_t K = f.geometry.inputs, weights = rows_of(&f) * K;
        f.start.qmin = -15, f.start.qmax = 15;
        for (int64_t i = 0; i < weights; i++) {
            f.weight[i] -= 1.6f * f.weight_scale[i / K];
            f.weight_q[i] = (int32_t)rintf(f.weight[i] / f.weight_scale[i / K]) + f.weight_zp[i / K];
        }
        const qk_gradient_options o = options_of((qk_gradient_method)method, false);
        qk_gradient_result r;
        int64_t outside = 0;
        CHECK(train(&f, &o, &r) == QK_OK);
        for (int64_t i = 0; i < weights; i++)
            outside += fabs(r.weight_q[i] - f.weight[i] / f.weight_scale[i / K] - f.weight_zp[i / K]) > 1.0001;
        CHECK(method == QK_ADAQUANT ? outside > weights / 4 : outside == 0);
        CHECK(r.after[QK_FITTED] < (method == QK_ADAQUANT ? 0.2 : 0.9) * r.before[QK_FITTED]);
        CHECK(r.after[QK_HELD_OUT] < (method == QK_ADAQUANT ? 0.2 : 0.9) * r.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

/* With all samples in a batch, the first loss is that of what training starts from: AdaQuant's rounded weights are
 * the start, AdaRound's soft ones the float weights. */
static void training_starts_from_the_float_weights(void) {
    for (int method = QK_ADAROUND; method <= QK_ADAQUANT; method++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1);
        qk_gradient_options o = options_of((qk_gradient_method)method, false);
        qk_gradient_result r;
        double losses[STEPS];
        f.start.qmin = -100, f.start.qmax = 100; /* no weight is beyond the grid */
        for (int64_t i = 0; i < rows_of(&f) * f.geometry.inputs; i++) {
            const int64_t row = i / f.geometry.inputs;
            f.weight_q[i] = (int32_t)rintf(f.weight[i] / f.weight_scale[row]) + f.weight_zp[row];
        }
        o.losses = losses;
        o.batch_size = FITTED;
        CHECK(train(&f, &o, &r) == QK_OK);
        const double noise = (double)rows_of(&f) * 0.1 * 0.1 / 12; /* uniform in -0.05 .. 0.05 */
        if (method == QK_ADAQUANT) CHECK_CLOSE(losses[0], r.before[QK_FITTED], 1e-6);
        if (method == QK_ADAROUND) CHECK(fabs(losses[0] - noise) < 0.1 * noise);
        fixture_free(&f);
    }
}

/* Soft weights can be better than any integers, unless the regulariser draws them there. */
static void the_regulariser_brings_soft_weights_to_integers(void) {
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1);
        qk_gradient_options o = options_of(QK_ADAROUND, false);
        qk_gradient_result r;
        double losses[5 * STEPS];
        o.iterations = 5 * STEPS;
        o.losses = losses;
        o.batch_size = FITTED;
        o.reg_param = kind ? 0.01 : 0;
        CHECK(train(&f, &o, &r) == QK_OK);
        const double last = losses[5 * STEPS - 1] / r.after[QK_FITTED];
        CHECK(kind ? fabs(last - 1) < 0.02 : last < 0.8);
        fixture_free(&f);
    }
}

/* Weights on the grid, and a target that they meet exactly. */
static void a_perfect_start_is_kept(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int method = QK_ADAROUND; method <= QK_ADAQUANT; method++) {
            const ref_case *c = &ref_cases[some_cases[i]];
            fixture f = fixture_new(c, 1, 1);
            const int64_t K = f.geometry.inputs, rows = rows_of(&f);
            for (int64_t w = 0; w < rows * K; w++)
                f.weight[w] = f.weight_scale[w / K] * (float)(f.weight_q[w] - f.weight_zp[w / K]);
            set_target(&f, NULL);
            qk_gradient_options o = options_of((qk_gradient_method)method, true);
            o.learning_rate /= 20; /* Adam steps as far as this even where there is nothing to gain */
            qk_gradient_result r;
            CHECK(train(&f, &o, &r) == QK_OK);
            CHECK_SAME(r.weight_q, f.weight_q, rows * K);
            CHECK(r.before[QK_FITTED] < 1e-6);
            fixture_free(&f);
        }
}

/* ---- the bias -------------------------------------------------------------------------------- */

/* AdaRound's bias is the integer nearest to what leaves no mean error. */
static void the_bias_takes_up_the_mean_error(void) {
    for (int i = 0; i < SOME_CASES; i++) {
        fixture f = fixture_new(&ref_cases[some_cases[i]], 2, 1);
        const qk_gradient_options o = options_of(QK_ADAROUND, true);
        qk_gradient_result r;
        const int64_t rows = rows_of(&f);
        double *bias = MEMORY(double, rows);
        CHECK(train(&f, &o, &r) == QK_OK);
        for (int64_t j = 0; j < rows; j++) bias[j] = (double)f.bias_scale[j] * r.bias_q[j];
        const expectation e = expectation_of(&f, r.weight_q, bias, QK_FITTED);
        for (int64_t j = 0; j < rows; j++) {
            if (r.bias_q[j] == (int32_t)rintf(f.bias[j] / f.bias_scale[j])) continue; /* the output may be as it was */
            CHECK(fabs(e.mean_error[j]) <= 0.501 * f.bias_scale[j] + 1e-5);
        }
        CHECK(r.improved > 0);
        free(bias);
        fixture_free(&f);
    }
}

static void adaquant_trains_the_bias(void) {
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    qk_gradient_options o = options_of(QK_ADAQUANT, true);
    qk_gradient_result r;
    for (int64_t i = 0; i < rows_of(&f); i++) f.bias[i] += i % 2 ? 0.3f : -0.3f; /* the target does not know of it */
    o.learning_rate = 0.0005;                                                    /* 0.1 in all steps */
    CHECK(train(&f, &o, &r) == QK_OK);
    for (int64_t i = 0; i < rows_of(&f); i++) {
        const double towards = ((double)f.bias_scale[i] * r.bias_q[i] - f.bias[i]) * (i % 2 ? -1 : 1);
        CHECK((towards > 0.02 && towards < 0.15) || fabs(towards) < 1e-6); /* the output may be as it was */
    }
    CHECK(r.improved >= 2);
    fixture_free(&f);
}

static void a_bias_that_may_not_move_does_not(void) {
    for (int kind = 0; kind < 6; kind++) {
        fixture f = fixture_new(&ref_cases[5], 3, 1);
        if (kind / 2 == 1) f.start.bias_scale = NULL;
        if (kind / 2 == 2) f.start.bias = NULL;
        const qk_gradient_options o = options_of(kind % 2 ? QK_ADAQUANT : QK_ADAROUND, kind / 2 != 0);
        qk_gradient_result r;
        for (int64_t i = 0; i < rows_of(&f); i++) f.new_bias[i] = 12345;
        CHECK(train(&f, &o, &r) == QK_OK);
        for (int64_t i = 0; i < rows_of(&f); i++) CHECK(r.bias_q[i] == 12345);
        fixture_free(&f);
    }
}

QK_TESTS(QK_TEST(results_are_what_they_claim), QK_TEST(the_loss_of_the_start_is_that_of_all_samples),
         QK_TEST(many_samples_are_judged_in_turns), QK_TEST(without_held_out_samples_their_loss_is_nan),
         QK_TEST(adaround_improves_on_rounding_to_nearest), QK_TEST(adaquant_improves_on_a_good_start),
         QK_TEST(only_adaquant_leaves_floor_and_ceil), QK_TEST(training_starts_from_the_float_weights),
         QK_TEST(the_regulariser_brings_soft_weights_to_integers), QK_TEST(a_perfect_start_is_kept),
         QK_TEST(the_bias_takes_up_the_mean_error), QK_TEST(adaquant_trains_the_bias),
         QK_TEST(a_bias_that_may_not_move_does_not))
