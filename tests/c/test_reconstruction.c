/* The reconstruction loss and its gradient against loops in float64 over all rows. */
#include "base/sizes.h"
#include "reconstruction_cases.h"

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
    for (int64_t i = 0; i < f->rows; i++) CHECK_CLOSE(r.slope_power[i], 1, 1e-12);
    for (int64_t i = 0; i < f->inputs; i++) CHECK(fabs(r.mean_power[i] - e.power[i]) <= 1e-5 * e.power[i]);
    result_free(&r);
    expectation_free(&e);
}

static void everything_is_what_the_loops_find(void) {
    for (int i = 0; i < CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
            fixture f = fixture_new(case_of(i), (qk_dtype)dtype, NULL, 1);
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
        fixture f = fixture_new(case_of(i), QK_F32, NULL, 2);
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
        fixture f = fixture_new(case_of(i), QK_F32, NULL, 1);
        int64_t *samples = backwards(&f);
        qk_reconstruction_result all = result_new(&f), some = result_new(&f), step = result_new(&f);
        reconstruct(&f, f.bias, samples, f.data->count, &all);
        double *power =
            step.mean_power; /* a step without it may go by Winograd's filtering, which rounds differently */
        step.mean_power = NULL;
        reconstruct(&f, f.bias, samples, f.data->count, &step);
        step.mean_power = power;
        for (int wanted = 0; wanted < 64; wanted++) {
            qk_reconstruction_result r = {.loss = NAN,
                                          .row_loss = wanted & 16 ? some.row_loss : NULL,
                                          .gradient = wanted & 1 ? some.gradient : NULL,
                                          .slope = wanted & 2 ? some.slope : NULL,
                                          .mean_power = wanted & 4 ? some.mean_power : NULL,
                                          .target_power = wanted & 8 ? some.target_power : NULL,
                                          .slope_power = wanted & 32 ? some.slope_power : NULL};
            reconstruct(&f, f.bias, samples, f.data->count, &r);
            check_same_result(&f, r.gradient && !r.mean_power ? &step : &all, &r);
        }
        result_free(&all);
        result_free(&step);
        result_free(&some);
        free(samples);
        fixture_free(&f);
    }
}

/* What an earlier call with more samples left in the scratch memory does not matter. */
static void calls_do_not_see_each_other(void) {
    for (int i = 0; i < CASES; i++) {
        fixture f = fixture_new(case_of(i), QK_U8, NULL, 1);
        int64_t *samples = backwards(&f);
        qk_reconstruction_result fresh = result_new(&f), used = result_new(&f);
        reconstruct(&f, f.bias, samples, 2, &fresh);
        qk_reconstruction r;
        qk_blas_enter();
        CHECK(qk_reconstruction_init(&r, f.data, f.data->count, f.data->count, f.pool) == QK_OK);
        qk_reconstruct(&r, f.weight, NULL, samples, f.data->count, &used);
        qk_reconstruct(&r, f.weight, f.bias, samples, 2, &used);
        qk_reconstruction_destroy(&r);
        qk_blas_leave();
        check_same_result(&f, &used, &fresh);
        result_free(&fresh);
        result_free(&used);
        free(samples);
        fixture_free(&f);
    }
}

static void threads_do_not_change_a_bit(void) {
    const int threads[] = {2, 5};
    for (int i = 0; i < CASES; i++) {
        fixture one = fixture_new(case_of(i), QK_I8, NULL, 1);
        int64_t *samples = backwards(&one);
        qk_reconstruction_result a = result_new(&one), b = result_new(&one);
        reconstruct(&one, one.bias, samples, one.data->count, &a);
        for (int t = 0; t < 2; t++) {
            fixture many = fixture_new(case_of(i), QK_I8, NULL, threads[t]);
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

/* Each piece is seen from one first piece, whatever the stride: what calls find adds up to what one on all of them
 * does. */
static void calls_on_some_pieces_add_up(void) {
    for (int i = REF_CASES; i < CASES; i++)
        for (int64_t stride = 2; stride <= 3; stride++) {
            fixture f = fixture_new(case_of(i), QK_U8, NULL, (int)stride);
            int64_t *samples = backwards(&f), seen = 0;
            qk_reconstruction_result all = result_new(&f), some = result_new(&f);
            double *sum = MEMORY(double, f.rows * f.K), loss = 0;
            reconstruct(&f, f.bias, samples, f.data->count, &all);
            qk_reconstruction r;
            qk_blas_enter();
            CHECK(qk_reconstruction_init(&r, f.data, f.data->count, f.data->count, f.pool) == QK_OK);
            r.stride = stride;
            for (r.first_piece = 0; r.first_piece < qk_smaller(stride, r.pieces.count); r.first_piece++) {
                int64_t positions = 0;
                for (int64_t p = r.first_piece; p < r.pieces.count; p += stride) positions += r.pieces.tables[p].count;
                qk_reconstruct(&r, f.weight, f.bias, samples, f.data->count, &some);
                loss += (double)positions / (double)f.positions * some.loss;
                for (int64_t w = 0; w < f.rows * f.K; w++)
                    sum[w] += (double)positions / (double)f.positions * some.gradient[w];
                seen += positions;
            }
            qk_reconstruction_destroy(&r);
            qk_blas_leave();
            CHECK(seen == f.positions);
            CHECK_CLOSE(loss / all.loss, 1, 1e-6);
            for (int64_t w = 0; w < f.rows * f.K; w++) CHECK(fabs(sum[w] - all.gradient[w]) <= 1e-4 * (1 + all.loss));
            free(sum);
            free(samples);
            result_free(&all);
            result_free(&some);
            fixture_free(&f);
        }
}

static qk_status init_attempt(void *context) {
    const fixture *f = context;
    qk_reconstruction r;
    const qk_status status = qk_reconstruction_init(&r, f->data, 3, 3, f->pool);
    qk_reconstruction_destroy(&r); /* also of one that failed */
    return status;
}

static void the_scratch_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[11], QK_F32, NULL, 1);
    qk_refuse_each_allocation(init_attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(everything_is_what_the_loops_find), QK_TEST(the_gradient_is_the_difference_of_the_loss),
         QK_TEST(only_what_is_wanted_is_computed), QK_TEST(calls_do_not_see_each_other),
         QK_TEST(threads_do_not_change_a_bit), QK_TEST(calls_on_some_pieces_add_up),
         QK_TEST(the_scratch_may_run_out_of_memory))
