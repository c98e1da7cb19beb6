/* Winograd's filtering against loops in float64, and steps by it against the same steps by im2col. */
#include "reconstruction_cases.h"

/* ---- the products alone ---------------------------------------------------------------------- */

enum { SAMPLES = 3 };
static const int64_t samples[SAMPLES] = {4, 0, 2};

/* A convolution 3x3 of `groups` groups, 3 channels and 5 outputs in each. */
static ref_case case_of_size(int64_t groups, int64_t height, int64_t width, const int64_t *pads) {
    return (ref_case){
        "3x3",
        {2, QK_PAD_EXPLICIT, groups, 5, 27, {3, 3}, {1, 1}, {1, 1}, {pads[0], pads[1]}, {pads[2], pads[3]}},
        4,
        {5, 3 * groups, height, width}};
}

/* Outputs of one group at all positions of the samples, (O, SAMPLES * positions), and the sum of the sizes of what each
 * is added up from; of errors of these, the gradient (O, K) and the same of it. */
typedef struct {
    double *out, *out_size, *gradient, *gradient_size;
} expectation;

static expectation expectation_of(const fixture *f, int64_t group, const float *error) {
    const int64_t K = f->K, O = f->geometry->outputs, P = f->positions;
    const expectation e = {MEMORY(double, O * SAMPLES * P), MEMORY(double, O * SAMPLES * P), MEMORY(double, O * K),
                           MEMORY(double, O * K)};
    float *xs = MEMORY(float, P * f->inputs);
    for (int64_t s = 0; s < SAMPLES; s++) {
        ref_inputs(f->geometry, &f->x, samples[s], xs);
        for (int64_t i = 0; i < O * P * K; i++) {
            const int64_t o = i / (P * K), p = i / K % P, k = i % K, at = o * SAMPLES * P + s * P + p;
            const double x = xs[p * f->inputs + group * K + k], w = f->weight[(group * O + o) * K + k];
            e.out[at] += w * x;
            e.out_size[at] += fabs(w * x);
            e.gradient[o * K + k] += error[at] * x;
            e.gradient_size[o * K + k] += fabs(error[at] * x);
        }
    }
    free(xs);
    return e;
}

static void expectation_free(expectation *e) {
    free(e->out);
    free(e->out_size);
    free(e->gradient);
    free(e->gradient_size);
}

static double largest(const double *x, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, x[i]);
    return most;
}

/* All samples in one part, or one sample after the other in pieces of some rows of tiles; outputs at once or by two. */
static void check_products(const fixture *f, bool whole, int64_t tile_rows, int64_t outputs) {
    const int64_t K = f->K, O = f->geometry->outputs, P = f->positions, W = f->data->extent.out[1];
    const int64_t piece = whole ? P : 4 * tile_rows * W, together = whole ? SAMPLES : 1;
    const qk_winograd_plan plan = {true, whole ? SAMPLES * P : piece, outputs};
    qk_random random = {(uint64_t)P};
    float *out = MEMORY(float, O * SAMPLES * P), *gradient = MEMORY(float, O * K);
    float *line = MEMORY(float, O * together * piece), *some = MEMORY(float, O * K);
    qk_winograd w;
    CHECK(qk_winograd_init(&w, f->data, &plan, 2) == QK_OK);
    qk_winograd_use_weight(&w, f->weight, f->pool);
    for (int64_t group = 0; group < f->geometry->groups; group++) {
        float *error = qk_floats(&random, O * SAMPLES * P, -1, 1);
        expectation e = expectation_of(f, group, error);
        memset(gradient, 0, (size_t)(O * K) * sizeof *gradient);
        for (int64_t o = 0; o < O; o += outputs)
            for (int64_t s = 0; s < SAMPLES; s += together)
                for (int64_t first = 0; first < P; first += piece) {
                    const int64_t count = P - first < piece ? P - first : piece, n = together * count;
                    const qk_part part = {.group = group,
                                          .output = o,
                                          .outputs = O - o < outputs ? O - o : outputs,
                                          .x = f->data->x,
                                          .which = samples,
                                          .first = s,
                                          .last = s + together,
                                          .position = first,
                                          .count = count};
                    qk_winograd_forward(&w, &part, 1, line);
                    for (int64_t i = 0; i < part.outputs * n; i++) {
                        const int64_t at = ((o + i / n) * SAMPLES + s + i % n / count) * P + first + i % count;
                        out[at] = line[i];
                        line[i] = error[at];
                    }
                    qk_winograd_backward(&w, &part, 1, some, line);
                    for (int64_t i = 0; i < part.outputs * K; i++) gradient[o * K + i] += some[i];
                }
        const double size = largest(e.out_size, O * SAMPLES * P), gradient_size = largest(e.gradient_size, O * K);
        for (int64_t i = 0; i < O * SAMPLES * P; i++) CHECK(fabs(out[i] - e.out[i]) <= 4e-6 * size);
        for (int64_t i = 0; i < O * K; i++) CHECK(fabs(gradient[i] - e.gradient[i]) <= 4e-6 * gradient_size);
        expectation_free(&e);
        free(error);
    }
    qk_winograd_destroy(&w);
    free(some);
    free(line);
    free(gradient);
    free(out);
}

static void products_of_every_size_are_those_of_loops(void) {
    static const int64_t pads[][4] = {{1, 1, 1, 1}, {0, 0, 0, 0}, {2, 0, 1, 2},
                                      {0, 2, 2, 0}, {2, 2, 2, 2}, {7, 6, 0, 9}};
    enum { PADS = sizeof pads / sizeof *pads };
    for (int64_t height = 1; height <= 13; height++)
        for (int64_t width = 1; width <= 13; width++) {
            const int64_t kind = height * 13 + width, *pad = pads[kind % PADS];
            if (height + pad[0] + pad[2] < 3 || width + pad[1] + pad[3] < 3) continue; /* no output */
            const ref_case c = case_of_size(kind % 3 == 0 ? 2 : 1, height, width, pad);
            fixture f = fixture_new(&c, (qk_dtype)(kind / PADS % 3), NULL, 1);
            const int64_t tile_rows = (f.data->extent.out[0] + 3) / 4;
            check_products(&f, true, 0, 5);
            if (tile_rows > 1) check_products(&f, false, 1, 2);
            if (tile_rows > 2) check_products(&f, false, 2, 5);
            fixture_free(&f);
        }
}

/* More outputs than are in memory at a time. */
static void there_may_be_many_outputs(void) {
    ref_case c = case_of_size(2, 6, 9, (int64_t[]){1, 1, 1, 1});
    c.geometry.outputs = 150;
    fixture f = fixture_new(&c, QK_F32, NULL, 1);
    check_products(&f, true, 0, 150);
    check_products(&f, true, 0, 70);
    fixture_free(&f);
}

/* ---- the plan -------------------------------------------------------------------------------- */

static qk_winograd_plan plan_for(const ref_case *c, int64_t count) {
    fixture f = fixture_new(c, QK_F32, NULL, 1);
    const qk_winograd_plan plan = qk_winograd_plan_of(f.data, count);
    fixture_free(&f);
    return plan;
}

static void only_3x3_without_strides_and_dilations_is_planned(void) {
    const ref_case fits = case_of_size(1, 40, 40, (int64_t[]){1, 1, 1, 1});
    CHECK(plan_for(&fits, 4).pays);
    ref_case c = fits;
    c.geometry.stride[1] = 2;
    CHECK(!plan_for(&c, 4).pays);
    c = fits;
    c.geometry.dilation[0] = 2;
    CHECK(!plan_for(&c, 4).pays);
    c = fits;
    c.geometry.transposed = true;
    CHECK(!plan_for(&c, 4).pays);
    c = fits;
    c.geometry.kernel[0] = 1, c.geometry.inputs = 9;
    CHECK(!plan_for(&c, 4).pays);
    const ref_case tiny = case_of_size(1, 4, 4, (int64_t[]){1, 1, 1, 1});
    CHECK(!plan_for(&tiny, 1).pays); /* the filters' transforms would cost more than they save */
}

/* Parts are whole samples or whole rows of tiles, and there are four at least where that leaves enough to do. */
static void a_plan_cuts_whole_tiles(void) {
    for (int64_t height = 5; height <= 61; height += 7)
        for (int64_t count = 1; count <= 32; count *= 2) {
            ref_case c = case_of_size(1, height, 30, (int64_t[]){1, 1, 1, 1});
            c.geometry.outputs = 64;
            fixture f = fixture_new(&c, QK_F32, NULL, 1);
            const qk_winograd_plan plan = qk_winograd_plan_of(f.data, count);
            const int64_t P = f.positions, W = 30;
            if (plan.pays) {
                CHECK(plan.columns < P ? plan.columns % (4 * W) == 0 : plan.columns % P == 0);
                const int64_t pieces = plan.columns < P ? (P + plan.columns - 1) / plan.columns : 1;
                const int64_t together = plan.columns < P ? 1 : plan.columns / P;
                CHECK((count + together - 1) / together * pieces * ((64 + plan.outputs - 1) / plan.outputs) >= 4);
            }
            fixture_free(&f);
        }
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* Pieces of one sample; several samples in a part; outputs in parts; groups. Rows of tiles that end with the image, and
 * that do not. */
static const ref_case paying[] = {
    {"pieces", {2, QK_PAD_EXPLICIT, 1, 5, 36, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {3, 4, 32, 40}},
    {"ragged pieces", {2, QK_PAD_EXPLICIT, 1, 6, 45, {3, 3}, {1, 1}, {1, 1}, {0, 2}, {1, 1}}, 4, {3, 5, 31, 42}},
    {"samples", {2, QK_PAD_SAME_UPPER, 1, 40, 72, {3, 3}, {1, 1}, {1, 1}, {0, 0}, {0, 0}}, 4, {40, 8, 8, 8}},
    {"ragged samples", {2, QK_PAD_VALID, 1, 70, 90, {3, 3}, {1, 1}, {1, 1}, {0, 0}, {0, 0}}, 4, {40, 10, 9, 12}},
    {"parts of outputs", {2, QK_PAD_EXPLICIT, 1, 40, 288, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {2, 32, 16, 16}},
    {"groups", {2, QK_PAD_EXPLICIT, 3, 8, 45, {3, 3}, {1, 1}, {1, 1}, {1, 0}, {1, 1}}, 4, {5, 15, 18, 20}},
};
enum { PAYING = sizeof paying / sizeof *paying };

static qk_reconstruction_result step_new(const fixture *f, bool by_im2col) {
    qk_reconstruction_result r = result_new(f);
    if (by_im2col) return r;
    free(r.mean_power); /* what only im2col gives */
    r.mean_power = NULL;
    return r;
}

/* Takes a step of a layer that is planned for so many samples. */
static void step(const fixture *f, const float *bias, const int64_t *which, int64_t count,
                 qk_reconstruction_result *result) {
    qk_reconstruction r;
    qk_blas_enter();
    CHECK(qk_reconstruction_init(&r, f->data, count, count, f->pool) == QK_OK);
    CHECK(r.plan.pays);
    qk_reconstruct(&r, f->weight, bias, which, count, result);
    qk_reconstruction_destroy(&r);
    qk_blas_leave();
}

static double largest_of(const float *x, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
    return most;
}

static void check_near(const fixture *f, const qk_reconstruction_result *a, const qk_reconstruction_result *b) {
    const int64_t weights = f->rows * f->K;
    const double size = largest_of(b->gradient, weights), slope_size = largest_of(b->slope, f->rows);
    CHECK(fabs(a->loss - b->loss) <= 1e-5 * b->loss);
    CHECK(fabs(*a->target_power - *b->target_power) <= 1e-6 * *b->target_power);
    for (int64_t i = 0; i < f->rows; i++) {
        CHECK(fabs(a->row_loss[i] - b->row_loss[i]) <= 1e-5 * b->row_loss[i]);
        CHECK(fabs(a->slope[i] - b->slope[i]) <= 1e-5 * slope_size);
        CHECK(fabs(a->slope_power[i] - b->slope_power[i]) <= 1e-3 * b->slope_power[i]);
    }
    for (int64_t i = 0; i < weights; i++) CHECK(fabs(a->gradient[i] - b->gradient[i]) <= 2e-5 * size);
    CHECK(memcmp(a->gradient, b->gradient, (size_t)weights * sizeof(float)) != 0); /* found in another way */
}

static void a_step_is_what_im2col_finds(void) {
    const qk_output_stage leaky = {.activation = {QK_LEAKY_RELU, 0.1f, 0}};
    for (int i = 0; i < PAYING; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
            fixture f = fixture_new(&paying[i], (qk_dtype)dtype, dtype == QK_U8 ? &leaky : NULL, 1);
            int64_t *which = backwards(&f);
            qk_reconstruction_result a = step_new(&f, false), b = step_new(&f, true);
            const int64_t counts[] = {f.data->count, f.data->count - 1};
            for (int j = 0; j < 2; j++) {
                const float *bias = j ? NULL : f.bias;
                step(&f, bias, which + j, counts[j], &a);
                step(&f, bias, which + j, counts[j], &b);
                check_near(&f, &a, &b);
            }
            result_free(&a);
            result_free(&b);
            free(which);
            fixture_free(&f);
        }
}

/* A call with fewer samples than planned, and inputs that are given in place of the data's. */
static void a_call_may_have_fewer_samples_and_other_inputs(void) {
    for (int i = 0; i < PAYING; i++) {
        fixture f = fixture_new(&paying[i], QK_U8, NULL, 1), other = fixture_new(&paying[i], QK_F32, NULL, 1);
        int64_t *which = backwards(&f);
        qk_reconstruction_result a = step_new(&f, false), b = step_new(&f, true);
        qk_reconstruction r;
        qk_blas_enter();
        CHECK(qk_reconstruction_init(&r, f.data, f.data->count, f.data->count, f.pool) == QK_OK);
        CHECK(r.plan.pays);
        for (int given = 0; given < 2; given++) {
            r.inputs = given ? other.data->x : NULL;
            qk_reconstruct(&r, f.weight, f.bias, which, f.data->count - 1, &a);
            qk_reconstruct(&r, f.weight, f.bias, which, f.data->count - 1, &b);
            check_near(&f, &a, &b);
        }
        qk_reconstruction_destroy(&r);
        qk_blas_leave();
        result_free(&a);
        result_free(&b);
        free(which);
        fixture_free(&f);
        fixture_free(&other);
    }
}

/* As in test_reconstruction.c: the loss, here by im2col, is quadratic, so central differences of any width are exact.
 */
static void the_gradient_is_the_difference_of_the_loss(void) {
    const float width = 0.25f;
    for (int i = 0; i < PAYING; i++) {
        fixture f = fixture_new(&paying[i], QK_F32, NULL, 2);
        int64_t *which = backwards(&f);
        qk_reconstruction_result r = step_new(&f, false), loss = {0};
        step(&f, f.bias, which, f.data->count, &r);
        const int64_t weights = f.rows * f.K;
        for (int64_t w = 0; w < weights; w += weights / 20) {
            const float kept = f.weight[w], upper = kept + width, lower = kept - width;
            f.weight[w] = upper;
            step(&f, f.bias, which, f.data->count, &loss);
            double difference = loss.loss;
            f.weight[w] = lower;
            step(&f, f.bias, which, f.data->count, &loss);
            difference = (difference - loss.loss) / ((double)upper - lower);
            f.weight[w] = kept;
            CHECK(fabs(r.gradient[w] - difference) <= 1e-5 * (1 + r.loss));
        }
        result_free(&r);
        free(which);
        fixture_free(&f);
    }
}

static void threads_do_not_change_a_bit(void) {
    const int threads[] = {2, 5};
    for (int i = 0; i < PAYING; i++) {
        fixture one = fixture_new(&paying[i], QK_I8, NULL, 1);
        int64_t *which = backwards(&one);
        qk_reconstruction_result a = step_new(&one, false), b = step_new(&one, false);
        step(&one, one.bias, which, one.data->count, &a);
        for (int t = 0; t < 2; t++) {
            fixture many = fixture_new(&paying[i], QK_I8, NULL, threads[t]);
            step(&many, many.bias, which, many.data->count, &b);
            check_same_result(&one, &a, &b);
            fixture_free(&many);
        }
        result_free(&a);
        result_free(&b);
        free(which);
        fixture_free(&one);
    }
}

/* Nothing of one step is left for the next: edges of tiles, outputs of larger steps. */
static void calls_do_not_see_each_other(void) {
    for (int i = 0; i < PAYING; i++) {
        fixture f = fixture_new(&paying[i], QK_U8, NULL, 1);
        int64_t *which = backwards(&f);
        qk_reconstruction_result fresh = step_new(&f, false), used = step_new(&f, false);
        qk_reconstruction r;
        qk_blas_enter();
        for (int before = 0; before < 2; before++) {
            CHECK(qk_reconstruction_init(&r, f.data, f.data->count, f.data->count, f.pool) == QK_OK);
            if (before) qk_reconstruct(&r, f.weight, NULL, which, f.data->count, &used);
            qk_reconstruct(&r, f.weight, f.bias, which + 1, 1, before ? &used : &fresh);
            qk_reconstruction_destroy(&r);
        }
        qk_blas_leave();
        check_same_result(&f, &fresh, &used);
        result_free(&fresh);
        result_free(&used);
        free(which);
        fixture_free(&f);
    }
}

static qk_status init_attempt(void *context) {
    const fixture *f = context;
    qk_reconstruction r;
    const qk_status status = qk_reconstruction_init(&r, f->data, 3, 3, f->pool);
    CHECK(r.plan.pays);
    qk_reconstruction_destroy(&r);
    return status;
}

static void the_scratch_may_run_out_of_memory(void) {
    fixture f = fixture_new(&paying[5], QK_F32, NULL, 1);
    qk_refuse_each_allocation(init_attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(products_of_every_size_are_those_of_loops), QK_TEST(there_may_be_many_outputs),
         QK_TEST(only_3x3_without_strides_and_dilations_is_planned), QK_TEST(a_plan_cuts_whole_tiles),
         QK_TEST(a_step_is_what_im2col_finds), QK_TEST(a_call_may_have_fewer_samples_and_other_inputs),
         QK_TEST(the_gradient_is_the_difference_of_the_loss), QK_TEST(threads_do_not_change_a_bit),
         QK_TEST(calls_do_not_see_each_other), QK_TEST(the_scratch_may_run_out_of_memory))
