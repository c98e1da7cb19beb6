/* The reconstruction loss and its gradient against loops in float64 over all rows. */
#include "finetune/reconstruction.h"

#include "base/blas.h"
#include "reference.h"

/* Units of several samples are in reference.h; here are units that are pieces of one sample, and a remainder. */
static const ref_case larger[] = {
    {"one unit", {.groups = 1, .inputs = 4, .outputs = 3}, 3, {3, 512, 4}},
    {"two pieces", {.groups = 1, .inputs = 4, .outputs = 3}, 3, {3, 513, 4}},
    {"1-D, three pieces", {1, QK_PAD_EXPLICIT, 2, 3, 6, {3}, {1}, {2}, {2}, {2}}, 3, {3, 4, 1100}},
    {"depthwise, pieces", {2, QK_PAD_EXPLICIT, 3, 1, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {3, 3, 30, 37}},
};
enum { LARGER = sizeof larger / sizeof *larger, CASES = REF_CASES + LARGER };

static const ref_case *case_of(int i) { return i < REF_CASES ? &ref_cases[i] : &larger[i - REF_CASES]; }

/* A layer's data in batches of one and of several samples, and any weight and bias. */
typedef struct {
    const qk_geometry *geometry;
    qk_training_data *data;
    qk_pool *pool;
    qk_tensor x, y;
    float *weight, *bias;
    int64_t rows, K, inputs, positions;
} fixture;

static fixture fixture_new(const ref_case *c, qk_dtype dtype, int threads) {
    const qk_geometry *g = &c->geometry;
    qk_random random = {(uint64_t)dtype + 1};
    int64_t dims[QK_MAX_DIMS];
    memcpy(dims, c->x_dims, sizeof dims);
    if (ref_positions(g, &(qk_tensor){.ndim = c->x_ndim, .dims = {1, dims[1], dims[2], dims[3], dims[4]}}) < 100)
        dims[0] = 40; /* so that there are several units */
    fixture f = {.geometry = g, .pool = qk_pool_new(threads), .rows = g->groups * g->outputs, .K = g->inputs};
    f.inputs = g->groups * g->inputs;
    f.x = ref_tensor(&random, dtype, c->x_ndim, dims);
    f.y = ref_target(&random, g, &f.x);
    f.positions = ref_positions(g, &f.x);
    f.weight = qk_floats(&random, f.rows * f.K, -1, 1);
    f.bias = qk_floats(&random, f.rows, -1, 1);
    CHECK(qk_training_data_new(&f.data, g, NULL, 0) == QK_OK);
    const qk_tensor x[] = {ref_slice(&f.x, 0, 1), ref_slice(&f.x, 1, dims[0])};
    const qk_tensor y[] = {ref_slice(&f.y, 0, 1), ref_slice(&f.y, 1, dims[0])};
    for (int i = 0; i < 2; i++) CHECK(qk_training_data_add(f.data, &x[i], NULL, &y[i]) == QK_OK);
    return f;
}

static void fixture_free(fixture *f) {
    qk_training_data_free(f->data);
    qk_pool_free(f->pool);
    ref_free(&f->x);
    ref_free(&f->y);
    free(f->weight);
    free(f->bias);
}

/* ---- the same by obvious loops --------------------------------------------------------------- */

typedef struct {
    double loss, target_power, *row_loss, *gradient, *slope, *power;
    double *gradient_size; /* the sum of the sizes of what is added up to the gradient: what rounding is relative to */
} expectation;

static expectation expectation_of(const fixture *f, const float *bias, const int64_t *samples, int64_t count) {
    const int64_t K = f->K, O = f->geometry->outputs;
    expectation e = {.row_loss = MEMORY(double, f->rows),
                     .gradient = MEMORY(double, f->rows * K),
                     .slope = MEMORY(double, f->rows),
                     .power = MEMORY(double, f->inputs),
                     .gradient_size = MEMORY(double, f->rows * K)};
    float *xs = MEMORY(float, f->positions * f->inputs), *ys = MEMORY(float, f->positions * f->rows);
    const double columns = (double)(count * f->positions);
    for (int64_t s = 0; s < count; s++) {
        ref_inputs(f->geometry, &f->x, samples[s], xs);
        ref_outputs(f->geometry, &f->y, samples[s], ys);
        for (int64_t p = 0; p < f->positions; p++) {
            for (int64_t r = 0; r < f->rows; r++) {
                const float *x = xs + p * f->inputs + r / O * K;
                const double y = ys[p * f->rows + r];
                double error = (bias ? bias[r] : 0) - y;
                for (int64_t k = 0; k < K; k++) error += (double)f->weight[r * K + k] * x[k];
                e.loss += error * error / columns;
                e.row_loss[r] += error * error / columns;
                e.target_power += y * y / columns;
                e.slope[r] += 2 * error / columns;
                for (int64_t k = 0; k < K; k++) {
                    e.gradient[r * K + k] += 2 * error * x[k] / columns;
                    e.gradient_size[r * K + k] += 2 * fabs(error * x[k]) / columns;
                }
            }
            for (int64_t i = 0; i < f->inputs; i++)
                e.power[i] += (double)xs[p * f->inputs + i] * xs[p * f->inputs + i] / columns;
        }
    }
    free(xs);
    free(ys);
    return e;
}

static void expectation_free(expectation *e) {
    void *arrays[] = {e->row_loss, e->gradient, e->slope, e->power, e->gradient_size};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* ---- the core -------------------------------------------------------------------------------- */

static qk_reconstruction_result result_new(const fixture *f) {
    return (qk_reconstruction_result){.row_loss = MEMORY(double, f->rows),
                                      .gradient = MEMORY(float, f->rows * f->K),
                                      .slope = MEMORY(float, f->rows),
                                      .mean_power = MEMORY(double, f->inputs),
                                      .target_power = MEMORY(double, 1)};
}

static void result_free(qk_reconstruction_result *r) {
    free(r->row_loss);
    free(r->gradient);
    free(r->slope);
    free(r->mean_power);
    free(r->target_power);
}

static void reconstruct(const fixture *f, const float *bias, const int64_t *samples, int64_t count,
                        qk_reconstruction_result *result) {
    qk_reconstruction r;
    qk_blas_enter();
    CHECK(qk_reconstruction_init(&r, f->data, count, f->pool) == QK_OK);
    qk_reconstruct(&r, f->weight, bias, samples, count, result);
    qk_reconstruction_destroy(&r);
    qk_blas_leave();
}

/* All samples from the last to the first, so that their order is not their place in memory. */
static int64_t *backwards(const fixture *f) {
    int64_t *samples = MEMORY(int64_t, f->data->count);
    for (int64_t s = 0; s < f->data->count; s++) samples[s] = f->data->count - 1 - s;
    return samples;
}

static void check_case(const fixture *f, const float *bias, const int64_t *samples, int64_t count) {
    expectation e = expectation_of(f, bias, samples, count);
    qk_reconstruction_result r = result_new(f);
    reconstruct(f, bias, samples, count, &r);
    CHECK(fabs(r.loss - e.loss) <= 1e-5 * e.loss);
    CHECK(fabs(*r.target_power - e.target_power) <= 1e-5 * e.target_power);
    for (int64_t i = 0; i < f->rows * f->K; i++)
        CHECK(fabs(r.gradient[i] - e.gradient[i]) <= 1e-5 * e.gradient_size[i] + 1e-9);
    for (int64_t i = 0; i < f->rows; i++) CHECK(fabs(r.row_loss[i] - e.row_loss[i]) <= 1e-5 * e.row_loss[i]);
    for (int64_t i = 0; i < f->rows; i++) CHECK_CLOSE(r.slope[i], e.slope[i], 1e-5);
    for (int64_t i = 0; i < f->inputs; i++) CHECK(fabs(r.mean_power[i] - e.power[i]) <= 1e-5 * e.power[i]);
    result_free(&r);
    expectation_free(&e);
}

static void everything_is_what_the_loops_find(void) {
    for (int i = 0; i < CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
            fixture f = fixture_new(case_of(i), (qk_dtype)dtype, 1);
            int64_t *samples = backwards(&f);
            check_case(&f, f.bias, samples, f.data->count);
            check_case(&f, NULL, samples, f.data->count);
            check_case(&f, f.bias, samples + 1, 1);
            check_case(&f, f.bias, samples, 2);
            free(samples);
            fixture_free(&f);
        }
}

/* The loss is quadratic: central differences of any width are exact, and a wide one loses few digits. */
static void the_gradient_is_the_difference_of_the_loss(void) {
    const float step = 0.25f;
    for (int i = 0; i < CASES; i++) {
        fixture f = fixture_new(case_of(i), QK_F32, 2);
        int64_t *samples = backwards(&f);
        qk_reconstruction_result r = result_new(&f), loss = {0};
        reconstruct(&f, f.bias, samples, f.data->count, &r);
        const int64_t weights = f.rows * f.K, stride = weights / 50 + 1; /* some of many */
        for (int64_t w = 0; w < weights + f.rows; w += w < weights ? stride : 1) {
            float *at = w < weights ? f.weight + w : f.bias + (w - weights);
            const float kept = *at, upper = kept + step, lower = kept - step;
            *at = upper;
            reconstruct(&f, f.bias, samples, f.data->count, &loss);
            double difference = loss.loss;
            *at = lower;
            reconstruct(&f, f.bias, samples, f.data->count, &loss);
            difference = (difference - loss.loss) / ((double)upper - lower);
            *at = kept;
            const double gradient = w < weights ? r.gradient[w] : r.slope[w - weights];
            CHECK(fabs(gradient - difference) <= 1e-5 * (1 + r.loss));
            if (w < weights && w + stride >= weights) w = weights - 1; /* on to the bias */
        }
        result_free(&r);
        free(samples);
        fixture_free(&f);
    }
}

static void only_what_is_wanted_is_computed(void) {
    for (int i = 0; i < CASES; i++) {
        fixture f = fixture_new(case_of(i), QK_F32, 1);
        int64_t *samples = backwards(&f);
        qk_reconstruction_result all = result_new(&f), some = result_new(&f);
        reconstruct(&f, f.bias, samples, f.data->count, &all);
        for (int wanted = 0; wanted < 32; wanted++) {
            qk_reconstruction_result r = {.loss = NAN,
                                          .row_loss = wanted & 16 ? some.row_loss : NULL,
                                          .gradient = wanted & 1 ? some.gradient : NULL,
                                          .slope = wanted & 2 ? some.slope : NULL,
                                          .mean_power = wanted & 4 ? some.mean_power : NULL,
                                          .target_power = wanted & 8 ? some.target_power : NULL};
            reconstruct(&f, f.bias, samples, f.data->count, &r);
            CHECK_SAME(&r.loss, &all.loss, 1);
            if (r.row_loss) CHECK_SAME(r.row_loss, all.row_loss, f.rows);
            if (r.gradient) CHECK_SAME(r.gradient, all.gradient, f.rows * f.K);
            if (r.slope) CHECK_SAME(r.slope, all.slope, f.rows);
            if (r.mean_power) CHECK_SAME(r.mean_power, all.mean_power, f.inputs);
            if (r.target_power) CHECK_SAME(r.target_power, all.target_power, 1);
        }
        result_free(&all);
        result_free(&some);
        free(samples);
        fixture_free(&f);
    }
}

/* What an earlier call with more samples left in the scratch memory does not matter. */
static void calls_do_not_see_each_other(void) {
    for (int i = 0; i < CASES; i++) {
        fixture f = fixture_new(case_of(i), QK_U8, 1);
        int64_t *samples = backwards(&f);
        qk_reconstruction_result fresh = result_new(&f), used = result_new(&f);
        reconstruct(&f, f.bias, samples, 2, &fresh);
        qk_reconstruction r;
        qk_blas_enter();
        CHECK(qk_reconstruction_init(&r, f.data, f.data->count, f.pool) == QK_OK);
        qk_reconstruct(&r, f.weight, NULL, samples, f.data->count, &used);
        qk_reconstruct(&r, f.weight, f.bias, samples, 2, &used);
        qk_reconstruction_destroy(&r);
        qk_blas_leave();
        CHECK_SAME(&used.loss, &fresh.loss, 1);
        CHECK_SAME(used.row_loss, fresh.row_loss, f.rows);
        CHECK_SAME(used.gradient, fresh.gradient, f.rows * f.K);
        CHECK_SAME(used.slope, fresh.slope, f.rows);
        CHECK_SAME(used.mean_power, fresh.mean_power, f.inputs);
        CHECK_SAME(used.target_power, fresh.target_power, 1);
        result_free(&fresh);
        result_free(&used);
        free(samples);
        fixture_free(&f);
    }
}

static void threads_do_not_change_a_bit(void) {
    const int threads[] = {2, 5};
    for (int i = 0; i < CASES; i++) {
        fixture one = fixture_new(case_of(i), QK_I8, 1);
        int64_t *samples = backwards(&one);
        qk_reconstruction_result a = result_new(&one), b = result_new(&one);
        reconstruct(&one, one.bias, samples, one.data->count, &a);
        for (int t = 0; t < 2; t++) {
            fixture many = fixture_new(case_of(i), QK_I8, threads[t]);
            reconstruct(&many, many.bias, samples, many.data->count, &b);
            CHECK_SAME(&a.loss, &b.loss, 1);
            CHECK_SAME(a.row_loss, b.row_loss, one.rows);
            CHECK_SAME(a.gradient, b.gradient, one.rows * one.K);
            CHECK_SAME(a.slope, b.slope, one.rows);
            CHECK_SAME(a.mean_power, b.mean_power, one.inputs);
            CHECK_SAME(a.target_power, b.target_power, 1);
            fixture_free(&many);
        }
        result_free(&a);
        result_free(&b);
        free(samples);
        fixture_free(&one);
    }
}

static qk_status init_attempt(void *context) {
    const fixture *f = context;
    qk_reconstruction r;
    const qk_status status = qk_reconstruction_init(&r, f->data, 3, f->pool);
    qk_reconstruction_destroy(&r); /* also of one that failed */
    return status;
}

static void the_scratch_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[11], QK_F32, 1);
    qk_refuse_each_allocation(init_attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(everything_is_what_the_loops_find), QK_TEST(the_gradient_is_the_difference_of_the_loss),
         QK_TEST(only_what_is_wanted_is_computed), QK_TEST(calls_do_not_see_each_other),
         QK_TEST(threads_do_not_change_a_bit), QK_TEST(the_scratch_may_run_out_of_memory))
