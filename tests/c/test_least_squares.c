/* The finetuned integers of a layer, judged on the rows themselves. */
#include "least_squares_cases.h"
#include "moments/row_choice.h"

/* The mean over one set's rows of |W^ x + b - y|^2. */
static double naive_error(const fixture *f, const int32_t *weight_q, const double *bias, qk_set set) {
    const qk_geometry *g = &f->geometry;
    const int64_t K = g->inputs, rows = rows_of(f), inputs = g->groups * K, positions = ref_positions(g, &f->x);
    float *xs = MEMORY(float, positions * inputs), *ys = MEMORY(float, positions * rows);
    int64_t *chosen = MEMORY(int64_t, positions), *order = MEMORY(int64_t, positions), fitted, count = 0;
    double sum = 0;
    for (int64_t sample = 0; sample < f->x.dims[0]; sample++) {
        ref_inputs(g, &f->x, sample, xs);
        ref_outputs(g, &f->y, sample, ys);
        const int64_t n = qk_choose_rows(&f->choice, sample, positions, chosen, order, &fitted);
        for (int64_t i = set == QK_FITTED ? 0 : fitted; i < (set == QK_FITTED ? fitted : n); i++, count++)
            for (int64_t o = 0; o < rows; o++) {
                double error = bias[o] - ys[chosen[i] * rows + o];
                for (int64_t k = 0; k < K; k++)
                    error += (double)f->weight_scale[o] * (weight_q[o * K + k] - f->weight_zp[o]) *
                             xs[chosen[i] * inputs + o / g->outputs * K + k];
                sum += error * error;
            }
    }
    free(order);
    free(chosen);
    free(ys);
    free(xs);
    return sum / (double)count;
}

/* Every claim of a result, checked against the rows. */
static void check_result(const fixture *f, const qk_least_squares_options *o, const qk_least_squares_result *r) {
    const int64_t K = f->geometry.inputs, rows = rows_of(f);
    double *before = MEMORY(double, rows), *after = MEMORY(double, rows);
    for (int64_t i = 0; i < rows; i++) {
        before[i] = after[i] = f->bias[i];
        if (o->update_bias) after[i] = (double)f->bias_scale[i] * r->bias_q[i];
    }
    for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
        CHECK(fabs(r->before[set] - naive_error(f, f->weight_q, before, (qk_set)set)) <= 1e-4 * r->before[set]);
        CHECK(fabs(r->after[set] - naive_error(f, r->weight_q, after, (qk_set)set)) <= 1e-4 * r->before[set]);
    }
    CHECK((r->improved > 0) == (r->after[QK_HELD_OUT] < r->before[QK_HELD_OUT]));
    CHECK((r->improved > 0) == (r->candidate != QK_START));
    CHECK(r->after[QK_HELD_OUT] <= r->before[QK_HELD_OUT]);
    for (int64_t i = 0; i < rows * K; i++) {
        const int32_t q = r->weight_q[i];
        CHECK(q >= f->start.qmin && q <= f->start.qmax);
        if (o->rounding == QK_FLOOR_OR_CEIL) {
            const double real = f->weight[i] / f->weight_scale[i / K] + f->weight_zp[i / K];
            CHECK(fabs(q - real) < 1.0001 || q == f->start.qmin || q == f->start.qmax);
        }
    }
    free(before);
    free(after);
}

static void results_are_what_they_claim(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int kind = 0; kind < 4; kind++) {
            fixture f = fixture_new(&ref_cases[some_cases[i]], (uint64_t)kind, 1);
            const qk_least_squares_options o = options_of(kind & 1 ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL, kind & 2);
            qk_least_squares_result r;
            CHECK(solve(&f, &o, &r) == QK_OK);
            check_result(&f, &o, &r);
            fixture_free(&f);
        }
}

/* y = W x of every row of the fixture, with the float weight. */
static void aim_at_own_weight(fixture *f) {
    const qk_geometry *g = &f->geometry;
    const int64_t K = g->inputs, rows = rows_of(f), positions = ref_positions(g, &f->x);
    float *xs = MEMORY(float, positions * g->groups * K), *y = (float *)f->y.data;
    for (int64_t sample = 0; sample < f->x.dims[0]; sample++) {
        ref_inputs(g, &f->x, sample, xs);
        for (int64_t p = 0; p < positions; p++)
            for (int64_t o = 0; o < rows; o++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++)
                    sum += (double)f->weight[o * K + k] * xs[(p * g->groups + o / g->outputs) * K + k];
                y[g->spatial ? (sample * rows + o) * positions + p : (sample * positions + p) * rows + o] = (float)sum;
            }
    }
    free(xs);
}

static void without_target_the_float_weight_is_the_target(void) {
    for (int i = 0; i < SOME_CASES; i++)
        for (int kind = 0; kind < 2; kind++) {
            fixture f = fixture_new(&ref_cases[some_cases[i]], (uint64_t)kind, 2);
            const qk_least_squares_options o = options_of(kind ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL, true);
            qk_least_squares_result r;
            qk_layer_free(f.layer);
            CHECK(qk_layer_new(&f.layer, &f.geometry, &f.choice, false) == QK_OK);
            CHECK(qk_layer_feed(f.layer, &f.x, NULL, f.pool) == QK_OK);
            CHECK(qk_layer_flush(f.layer, f.pool) == QK_OK);
            CHECK(solve(&f, &o, &r) == QK_E_ARG); /* a bias */
            f.start.bias = f.start.bias_scale = NULL;
            CHECK(solve(&f, &o, &r) == QK_OK);
            aim_at_own_weight(&f);
            double *bias = MEMORY(double, rows_of(&f));
            for (int64_t row = 0; row < rows_of(&f); row++) bias[row] = 0;
            for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
                CHECK(fabs(r.before[set] - naive_error(&f, f.weight_q, bias, set)) <= 1e-4 * r.before[set]);
                CHECK(fabs(r.after[set] - naive_error(&f, r.weight_q, bias, set)) <= 1e-4 * r.before[set]);
            }
            CHECK((r.improved > 0) == (r.after[QK_HELD_OUT] < r.before[QK_HELD_OUT]));
            free(bias);
            fixture_free(&f);
        }
}

static void coarse_weights_improve(void) {
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1); /* 3x3, K = 27 */
        const qk_least_squares_options o = options_of(kind ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL, true);
        qk_least_squares_result r;
        CHECK(solve(&f, &o, &r) == QK_OK);
        CHECK(r.improved > 0);
        CHECK(r.after[QK_HELD_OUT] < 0.8 * r.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

/* The target wants every weight 1.6 steps higher than its float value: out of AdaRound's rounding range, inside of
 * AdaQuant's. */
static void only_the_free_box_leaves_floor_and_ceil(void) {
    for (int rounding = QK_FLOOR_OR_CEIL; rounding <= QK_ANY_INTEGER; rounding++) {
        fixture f = fixture_new(&ref_cases[5], 1, 1);
        const int64_t K = f.geometry.inputs, weights = rows_of(&f) * K;
        for (int64_t i = 0; i < weights; i++) {
            const float scale = f.weight_scale[i / K];
            f.weight[i] -= 1.6f * scale;
            f.weight_q[i] = (int32_t)fmaxf(rintf(f.weight[i] / scale) + (float)f.weight_zp[i / K], -8);
        }
        const qk_least_squares_options o = options_of((qk_rounding_range)rounding, true);
        qk_least_squares_result r;
        int64_t outside = 0;
        CHECK(solve(&f, &o, &r) == QK_OK);
        check_result(&f, &o, &r);
        for (int64_t i = 0; i < weights; i++) {
            const double real = f.weight[i] / f.weight_scale[i / K] + f.weight_zp[i / K];
            outside += real > f.start.qmin && fabs(r.weight_q[i] - real) > 1.0001;
        }
        CHECK(rounding == QK_ANY_INTEGER ? outside > weights / 4 : outside == 0);
        fixture_free(&f);
    }
}

static void the_start_is_kept_when_nothing_is_better(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    const int64_t rows = rows_of(&f), K = f.geometry.inputs;
    for (int64_t i = 0; i < rows * K; i++) { /* weights on the grid, and a target that they meet exactly */
        f.weight[i] = f.weight_scale[i / K] * (float)(f.weight_q[i] - f.weight_zp[i / K]);
    }
    float *y = (float *)f.y.data;
    const float *x = f.x.data;
    for (int64_t p = 0; p < f.x.dims[0]; p++)
        for (int64_t o = 0; o < rows; o++) {
            double sum = f.bias[o];
            for (int64_t k = 0; k < K; k++) sum += (double)f.weight[o * K + k] * x[p * K + k];
            y[p * rows + o] = (float)sum;
        }
    feed_layer(&f);
    const qk_least_squares_options o = options_of(QK_ANY_INTEGER, false);
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_OK);
    CHECK_SAME(r.weight_q, f.weight_q, rows * K);
    fixture_free(&f);
}

static void the_bias_takes_up_the_mean_error(void) {
    fixture f = fixture_new(&ref_cases[5], 2, 1);
    const int64_t rows = rows_of(&f);
    qk_least_squares_options o = options_of(QK_FLOOR_OR_CEIL, true);
    o.damping_count = 0; /* leaves the bias alone to move */
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_OK);
    CHECK(r.improved > 0 && r.candidate == QK_BIAS_ONLY);
    CHECK_SAME(r.weight_q, f.weight_q, rows * f.geometry.inputs);
    check_result(&f, &o, &r);
    for (int64_t i = 0; i < rows; i++) { /* one step of the integer bias either way is worse on the fitted rows */
        const int32_t old = (int32_t)rintf(f.bias[i] / f.bias_scale[i]);
        if (r.bias_q[i] == old) continue; /* kept: the held-out rows preferred it */
        double bias[16], errors[3];
        for (int step = -1; step <= 1; step++) {
            for (int64_t k = 0; k < rows; k++) bias[k] = (double)f.bias_scale[k] * (r.bias_q[k] + (k == i ? step : 0));
            errors[step + 1] = naive_error(&f, r.weight_q, bias, QK_FITTED);
        }
        CHECK(errors[1] <= errors[0] + 1e-8 && errors[1] <= errors[2] + 1e-8);
    }
    fixture_free(&f);
}

static void a_bias_that_may_not_move_does_not(void) {
    for (int kind = 0; kind < 3; kind++) {
        fixture f = fixture_new(&ref_cases[5], 3, 1);
        if (kind == 1) f.start.bias_scale = NULL;
        if (kind == 2) f.start.bias = NULL;
        const qk_least_squares_options o = options_of(QK_FLOOR_OR_CEIL, kind != 0);
        qk_least_squares_result r;
        for (int64_t i = 0; i < rows_of(&f); i++) f.new_bias[i] = 12345;
        CHECK(solve(&f, &o, &r) == QK_OK);
        for (int64_t i = 0; i < rows_of(&f); i++) CHECK(r.bias_q[i] == 12345);
        CHECK(r.after[QK_HELD_OUT] <= r.before[QK_HELD_OUT]);
        fixture_free(&f);
    }
}

static void threads_do_not_change_a_bit(void) {
    for (int i = 0; i < REF_CASES; i++) {
        fixture one = fixture_new(&ref_cases[i], 1, 1);
        const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
        qk_least_squares_result a, b;
        CHECK(solve(&one, &o, &a) == QK_OK);
        for (int threads = 2; threads <= 3; threads++) {
            fixture many = fixture_new(&ref_cases[i], 1, threads);
            CHECK(solve(&many, &o, &b) == QK_OK);
            CHECK_SAME(a.weight_q, b.weight_q, rows_of(&one) * one.geometry.inputs);
            CHECK_SAME(a.bias_q, b.bias_q, rows_of(&one));
            CHECK_SAME(a.before, b.before, 2);
            CHECK_SAME(a.after, b.after, 2);
            CHECK_SAME(a.power, b.power, 2);
            CHECK(a.candidate == b.candidate && a.improved == b.improved);
            fixture_free(&many);
        }
        fixture_free(&one);
    }
}

/* A bias far beyond its grid, the largest integers of which float32 does not hold. */
static void a_saturated_bias_stays_saturated(void) {
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    for (int64_t i = 0; i < rows_of(&f); i++) f.bias_scale[i] = 1e-11f;
    f.start.bias_qmin = INT32_MIN;
    f.start.bias_qmax = INT32_MAX;
    const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_OK);
    for (int64_t i = 0; i < rows_of(&f); i++) CHECK(r.bias_q[i] == (f.bias[i] < 0 ? INT32_MIN : INT32_MAX));
    fixture_free(&f);
}

static bool stop_at_second_call(void *user) { return ++*(int *)user == 2; }

static void the_callback_can_cancel(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    int calls = 0;
    qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
    o.cancelled = stop_at_second_call;
    o.user = &calls;
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_E_CANCELLED);
    CHECK(calls == 2);
    fixture_free(&f);
}

static void too_little_data_is_refused(void) {
    fixture f = fixture_new(&ref_cases[0], 1, 1);
    f.choice.holdout = 0;
    feed_layer(&f);
    const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
    qk_least_squares_result r;
    CHECK(solve(&f, &o, &r) == QK_E_NO_ROWS);
    fixture_free(&f);
}

static void nan_in_the_data_is_refused(void) {
    for (int kind = 0; kind < 2; kind++) {
        fixture f = fixture_new(&ref_cases[0], 1, 1);
        *(float *)(kind ? f.y.data : f.x.data) = kind ? NAN : INFINITY;
        feed_layer(&f);
        const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
        qk_least_squares_result r;
        CHECK(solve(&f, &o, &r) == QK_E_NONFINITE);
        fixture_free(&f);
    }
}

static qk_status solve_attempt(void *context) {
    const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
    qk_least_squares_result r;
    return solve(context, &o, &r);
}

static void the_solver_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[11], 1, 1);
    qk_refuse_each_allocation(solve_attempt, &f);
    fixture_free(&f);
}

/* Finite data is not called NaN or Inf, whatever its size. */
static void data_too_large_to_be_squared_is_called_that(void) {
    for (int kind = 0; kind < 4; kind++) {
        fixture f = fixture_new(&ref_cases[0], 1, 1);
        *(float *)(kind % 2 ? f.y.data : f.x.data) = kind / 2 ? 3e38f : -1e20f;
        feed_layer(&f);
        const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
        qk_least_squares_result r;
        CHECK(solve(&f, &o, &r) == QK_E_TOO_LARGE);
        fixture_free(&f);
    }
}

QK_TESTS(QK_TEST(data_too_large_to_be_squared_is_called_that), QK_TEST(results_are_what_they_claim),
         QK_TEST(without_target_the_float_weight_is_the_target), QK_TEST(coarse_weights_improve),
         QK_TEST(only_the_free_box_leaves_floor_and_ceil), QK_TEST(the_start_is_kept_when_nothing_is_better),
         QK_TEST(the_bias_takes_up_the_mean_error), QK_TEST(a_bias_that_may_not_move_does_not),
         QK_TEST(threads_do_not_change_a_bit), QK_TEST(a_saturated_bias_stays_saturated),
         QK_TEST(the_callback_can_cancel), QK_TEST(too_little_data_is_refused), QK_TEST(nan_in_the_data_is_refused),
         QK_TEST(the_solver_may_run_out_of_memory))
