/* Least squares on rows: the integers that it finds on moments. */
#include "least_squares_cases.h"
#include "moments/layer.h"

/* More inputs than rows: a matrix of several blocks of outputs, groups, a width that is one block of inputs and more.
 */
static const ref_case few_rows[] = {
    {.geometry = {.groups = 1, .inputs = 200, .outputs = 70}, .x_ndim = 2, .x_dims = {12, 200}},
    {.geometry = {2, QK_PAD_VALID, 2, 3, 72, {3, 3}, {1, 1}, {1, 1}, {0}, {0}}, .x_ndim = 4, .x_dims = {12, 16, 3, 4}},
    {.geometry = {.groups = 1, .inputs = 64, .outputs = 1}, .x_ndim = 2, .x_dims = {12, 64}},
};
enum { CASES = sizeof few_rows / sizeof *few_rows };

static fixture kept_fixture(int i, uint64_t seed, int threads, int64_t kept) {
    fixture f = fixture_of(&few_rows[i], 12, seed, threads);
    f.choice = (qk_row_choice){.samples = 12, .max_rows = 600, .holdout = 3, .kept = kept};
    feed_layer(&f);
    CHECK(f.layer->keeps_rows == (kept > 0));
    return f;
}

static void rows_lead_where_moments_lead(void) {
    int64_t outputs = 0, same = 0;
    for (int run = 0; run < 8 * CASES; run++) {
        const int i = run % CASES;
        fixture f = kept_fixture(i, (uint64_t)run, 2, 1000), g = kept_fixture(i, (uint64_t)run, 2, 0);
        qk_least_squares_options o = options_of(run & 8 ? QK_ANY_INTEGER : QK_FLOOR_OR_CEIL, run & 16);
        o.damping = (const double[]){1e-3, 1};
        const int64_t K = f.geometry.inputs;
        qk_least_squares_result a, b;
        CHECK(solve(&f, &o, &a) == QK_OK && solve(&g, &o, &b) == QK_OK);
        int64_t alike = 0;
        for (int64_t r = 0; r < rows_of(&f); r++)
            alike += memcmp(a.weight_q + r * K, b.weight_q + r * K, (size_t)K * sizeof *a.weight_q) == 0;
        outputs += rows_of(&f);
        same += alike;
        for (int set = 0; set < 2; set++) {
            CHECK_CLOSE(a.power[set], b.power[set], 1e-4);
            CHECK_CLOSE(a.before[set], b.before[set], 1e-3);
        }
        if (alike == rows_of(&f)) CHECK(fabs(a.after[1] - b.after[1]) <= 1e-3 * b.before[1]);
        fixture_free(&f);
        fixture_free(&g);
    }
    CHECK(same >= outputs * 95 / 100); /* a rounding that float32 decides otherwise changes all that follow */
}

static void threads_do_not_change_a_bit(void) {
    for (int i = 0; i < CASES; i++) {
        fixture one = kept_fixture(i, 1, 1, 1000);
        const qk_least_squares_options o = options_of(QK_ANY_INTEGER, i % 2 == 0);
        qk_least_squares_result a, b;
        CHECK(solve(&one, &o, &a) == QK_OK);
        for (int threads = 2; threads <= 3; threads++) {
            fixture many = kept_fixture(i, 1, threads, 1000);
            CHECK(solve(&many, &o, &b) == QK_OK);
            CHECK_SAME(a.weight_q, b.weight_q, rows_of(&one) * one.geometry.inputs);
            CHECK_SAME(a.after, b.after, 2);
            fixture_free(&many);
        }
        fixture_free(&one);
    }
}

static qk_status attempt(void *context) {
    const qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
    qk_least_squares_result r;
    return solve(context, &o, &r);
}

static void the_solver_may_run_out_of_memory(void) {
    fixture f = kept_fixture(1, 1, 1, 1000);
    qk_refuse_each_allocation(attempt, &f);
    fixture_free(&f);
}

static bool stop(void *user) {
    (void)user;
    return true;
}

static void the_caller_may_stop_it(void) {
    fixture f = kept_fixture(0, 1, 2, 1000);
    qk_least_squares_options o = options_of(QK_ANY_INTEGER, true);
    qk_least_squares_result r;
    o.cancelled = stop;
    CHECK(solve(&f, &o, &r) == QK_E_CANCELLED);
    fixture_free(&f);
}

static void data_that_is_no_number_or_too_large_is_refused(void) {
    const float bad[] = {NAN, INFINITY, 3e38f, -1e20f};
    for (int i = 0; i < 4; i++)
        for (int kind = 0; kind < 2; kind++) {
            fixture f = kept_fixture(0, 1, 1, 1000);
            *(float *)(kind ? f.y.data : f.x.data) = bad[i];
            feed_layer(&f);
            CHECK(attempt(&f) == (i < 2 ? QK_E_NONFINITE : QK_E_TOO_LARGE));
            fixture_free(&f);
        }
}

/* Inputs that are always zero, and all of them. */
static void dead_inputs_keep_their_rounding(void) {
    for (int all = 0; all < 2; all++) {
        fixture f = kept_fixture(0, 1, 1, 1000);
        const int64_t K = f.geometry.inputs;
        for (int64_t i = 0; i < 12 * K; i++)
            if (all || i % K == 5) ((float *)f.x.data)[i] = 0;
        feed_layer(&f);
        CHECK(attempt(&f) == QK_OK);
        for (int64_t i = 0; i < rows_of(&f) * K; i++)
            if (all) CHECK(f.new_weight[i] == f.weight_q[i]);
        fixture_free(&f);
    }
}

QK_TESTS(QK_TEST(rows_lead_where_moments_lead), QK_TEST(threads_do_not_change_a_bit),
         QK_TEST(the_solver_may_run_out_of_memory), QK_TEST(the_caller_may_stop_it),
         QK_TEST(data_that_is_no_number_or_too_large_is_refused), QK_TEST(dead_inputs_keep_their_rounding))
