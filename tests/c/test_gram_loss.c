/* Loss and gradient from Gram matrices against those that are found from the rows; moments against those of the rows.
 */
#include "loss/gram_loss.h"

#include "loss/dataset_moments.h"
#include "reconstruction_cases.h"

/* Steps of groups in several tasks, and of one group in several; bytes that are multiplied in several goes. */
static const ref_case cut[] = {
    {"many groups", {2, QK_PAD_EXPLICIT, 100, 1, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {40, 100, 3, 4}},
    {"many positions", {0, QK_PAD_EXPLICIT, 1, 2, 3}, 3, {3, 9000, 3}},
    {"large groups", {1, QK_PAD_EXPLICIT, 2, 60, 70, {7}, {1}, {1}, {3}, {3}}, 3, {40, 20, 9}},
};
enum { CUT = sizeof cut / sizeof *cut, ALL_CASES = CASES + CUT };

static const ref_case *any_case(int i) { return i < CASES ? case_of(i) : &cut[i - CASES]; }

/* A layer whose weights and bias have moved, and from where. */
typedef struct {
    fixture f;
    float *weight, *bias;
    bool trains_bias;
} moved_layer;

static moved_layer moved_new(const ref_case *c, qk_dtype dtype, bool trains_bias, int threads) {
    moved_layer m = {.f = fixture_new(c, dtype, NULL, threads), .trains_bias = trains_bias};
    qk_random random = {5};
    m.weight = qk_floats(&random, m.f.rows * m.f.K, -0.1f, 0.1f);
    m.bias = qk_floats(&random, m.f.rows, -0.1f, 0.1f);
    for (int64_t i = 0; i < m.f.rows * m.f.K; i++) m.weight[i] += m.f.weight[i];
    for (int64_t i = 0; i < m.f.rows; i++) m.bias[i] = m.f.bias[i] + (trains_bias ? m.bias[i] : 0);
    return m;
}

static void moved_free(moved_layer *m) {
    fixture_free(&m->f);
    free(m->weight);
    free(m->bias);
}

typedef struct {
    qk_reconstruction on;
    qk_sample_grams grams;
    qk_gram_loss loss;
} gram_losses;

/* All samples are added, in this order, by two calls; a step has at most `batch` of them. */
static void gram_losses_new(gram_losses *g, const moved_layer *m, const int64_t *samples, int64_t batch) {
    const int64_t count = m->f.data->count;
    CHECK(qk_reconstruction_init(&g->on, m->f.data, count, count, m->f.pool) == QK_OK);
    CHECK(qk_sample_grams_init(&g->grams, &g->on, m->f.weight, m->f.bias, m->trains_bias, count) == QK_OK);
    CHECK(qk_gram_loss_init(&g->loss, &g->grams, batch) == QK_OK);
    qk_sample_grams_add(&g->grams, samples, 1);
    qk_sample_grams_add(&g->grams, samples + 1, count - 1);
}

static void gram_losses_free(gram_losses *g) {
    qk_gram_loss_destroy(&g->loss);
    qk_sample_grams_destroy(&g->grams);
    qk_reconstruction_destroy(&g->on);
}

static void find(const moved_layer *m, const int64_t *samples, int64_t count, qk_reconstruction_result *found) {
    gram_losses g;
    int64_t *all = backwards(&m->f);
    qk_blas_enter();
    gram_losses_new(&g, m, all, count);
    qk_gram_loss_find(&g.loss, m->weight, m->bias, samples, count, found);
    gram_losses_free(&g);
    qk_blas_leave();
    free(all);
}

/* No mean of products is larger than this. */
static double most(double a_squared, double b_squared) { return sqrt(a_squared * b_squared); }

static void check_case(const moved_layer *m, const int64_t *samples, int64_t count) {
    const fixture *f = &m->f;
    qk_reconstruction_result want = result_new(f), have = result_new(f), before = result_new(f);
    fixture moved = *f;
    reconstruct(f, f->bias, samples, count, &before);
    moved.weight = m->weight;
    reconstruct(&moved, m->bias, samples, count, &want);
    qk_reconstruction_result wanted = {.row_loss = have.row_loss, .gradient = have.gradient, .slope = have.slope};
    find(m, samples, count, &wanted);
    CHECK(fabs(wanted.loss - want.loss) <= 1e-5 * (want.loss + before.loss));
    for (int64_t r = 0; r < f->rows; r++) {
        const double size = want.row_loss[r] + before.row_loss[r];
        CHECK(fabs(have.row_loss[r] - want.row_loss[r]) <= 1e-5 * size);
        if (m->trains_bias) CHECK(fabs(have.slope[r] - want.slope[r]) <= 1e-5 * most(size, 1));
        for (int64_t k = 0; k < f->K; k++)
            CHECK(fabs(have.gradient[r * f->K + k] - want.gradient[r * f->K + k]) <=
                  1e-5 * most(size, want.mean_power[r / f->geometry->outputs * f->K + k]));
    }
    result_free(&before);
    result_free(&want);
    result_free(&have);
}

static void everything_is_what_the_rows_say(void) {
    for (int i = 0; i < ALL_CASES; i++)
        for (int kind = 0; kind < 6; kind++) {
            moved_layer m = moved_new(any_case(i), (qk_dtype)(kind / 2), kind % 2, 1);
            int64_t *samples = MEMORY(int64_t, m.f.data->count);
            for (int64_t s = 0; s < m.f.data->count; s++) samples[s] = s;
            check_case(&m, samples, m.f.data->count);
            check_case(&m, samples + 1, 1);
            check_case(&m, samples + 1, 2);
            free(samples);
            moved_free(&m);
        }
}

static void at_the_reference_the_loss_is_its_own(void) {
    for (int i = 0; i < ALL_CASES; i++) {
        moved_layer m = moved_new(any_case(i), QK_F32, true, 1);
        int64_t *samples = backwards(&m.f);
        memcpy(m.weight, m.f.weight, (size_t)(m.f.rows * m.f.K) * sizeof *m.weight);
        memcpy(m.bias, m.f.bias, (size_t)m.f.rows * sizeof *m.bias);
        check_case(&m, samples, m.f.data->count);
        free(samples);
        moved_free(&m);
    }
}

static void check_same(const fixture *f, const qk_reconstruction_result *a, const qk_reconstruction_result *b) {
    CHECK_SAME(&a->loss, &b->loss, 1);
    CHECK_SAME(a->row_loss, b->row_loss, f->rows);
    CHECK_SAME(a->gradient, b->gradient, f->rows * f->K);
    CHECK_SAME(a->slope, b->slope, f->rows);
}

static void threads_do_not_change_a_bit(void) {
    const int threads[] = {2, 5};
    for (int i = 0; i < ALL_CASES; i++) {
        moved_layer one = moved_new(any_case(i), QK_I8, i % 2, 1);
        int64_t *samples = backwards(&one.f);
        for (int64_t count = 1; count <= 3; count += 2) {
            qk_reconstruction_result a = result_new(&one.f), b = result_new(&one.f);
            find(&one, samples, count, &a);
            for (int t = 0; t < 2; t++) {
                moved_layer many = moved_new(any_case(i), QK_I8, i % 2, threads[t]);
                find(&many, samples, count, &b);
                check_same(&one.f, &a, &b);
                moved_free(&many);
            }
            result_free(&a);
            result_free(&b);
        }
        free(samples);
        moved_free(&one);
    }
}

/* What an earlier call with more samples, or from elsewhere, left in the scratch memory does not matter. */
static void calls_do_not_see_each_other(void) {
    for (int i = 0; i < ALL_CASES; i++) {
        moved_layer m = moved_new(any_case(i), QK_U8, true, 1);
        const int64_t count = m.f.data->count;
        int64_t *samples = backwards(&m.f);
        qk_reconstruction_result a = result_new(&m.f), b = result_new(&m.f);
        gram_losses g;
        qk_blas_enter();
        gram_losses_new(&g, &m, samples, count);
        qk_gram_loss_find(&g.loss, m.weight, m.bias, samples, 2, &a);
        qk_gram_loss_find(&g.loss, m.f.weight, m.f.bias, samples, count, &b);
        b.row_loss[0] = b.slope[0] = NAN;
        b.gradient[0] = NAN;
        qk_gram_loss_find(&g.loss, m.weight, m.bias, samples, 2, &b);
        check_same(&m.f, &a, &b);
        gram_losses_free(&g);
        qk_blas_leave();
        result_free(&a);
        result_free(&b);
        free(samples);
        moved_free(&m);
    }
}

static void check_moments(const moved_layer *m, const int64_t *samples, int64_t count) {
    const fixture *f = &m->f;
    const int64_t K = f->K, inputs = f->inputs, O = f->geometry->outputs;
    gram_losses g;
    qk_quadratic want, have;
    qk_blas_enter();
    gram_losses_new(&g, m, samples, 1);
    CHECK(g.grams.as_bytes && qk_sample_grams_moments(&g.grams, &have) == QK_OK);
    CHECK(qk_dataset_moments_init(&want, f->data, samples, count, f->pool) == QK_OK);
    qk_blas_leave();
    for (int64_t i = 0; i < inputs; i++) {
        CHECK_CLOSE(have.mean_x[i], want.mean_x[i], 1e-12);
        for (int64_t k = 0; k < K; k++) CHECK_CLOSE(have.gram[i * K + k], want.gram[i * K + k], 1e-12);
    }
    for (int64_t row = 0; row < f->rows; row++) {
        CHECK_CLOSE(have.mean_y[row], want.mean_y[row], 1e-5);
        CHECK_CLOSE(have.power[row], want.power[row], 1e-5);
        for (int64_t k = 0; k < K; k++) {
            const double square = want.gram[(row / O * K + k) * K + k];
            CHECK(fabs(have.cross[row * K + k] - want.cross[row * K + k]) <= 1e-5 * most(square, want.power[row]));
        }
    }
    gram_losses_free(&g);
    qk_quadratic_destroy(&want);
    qk_quadratic_destroy(&have);
}

static void moments_are_those_of_all_samples(void) {
    for (int i = 0; i < ALL_CASES; i++)
        for (int kind = 0; kind < 4; kind++) {
            moved_layer m = moved_new(any_case(i), kind / 2 ? QK_I8 : QK_U8, kind % 2, 3);
            int64_t *samples = backwards(&m.f);
            check_moments(&m, samples, m.f.data->count);
            free(samples);
            moved_free(&m);
        }
}

static void bytes_that_stand_for_other_values_are_taken_as_floats(void) {
    for (int i = 0; i < ALL_CASES; i++) {
        moved_layer m = moved_new(any_case(i), QK_U8, true, 2);
        int64_t *samples = backwards(&m.f);
        gram_losses g;
        m.f.data->x[1].affine.zero_point += 5;
        qk_blas_enter();
        gram_losses_new(&g, &m, samples, 1);
        CHECK(!g.grams.as_bytes);
        gram_losses_free(&g);
        qk_blas_leave();
        check_case(&m, samples, m.f.data->count);
        free(samples);
        moved_free(&m);
    }
}

static void it_pays_with_many_positions_and_few_inputs(void) {
    const qk_geometry few = {.groups = 1, .inputs = 144, .outputs = 16},
                      many = {.groups = 1, .inputs = 2000, .outputs = 16};
    const qk_geometry depthwise = {.groups = 128, .inputs = 9, .outputs = 1};
    const qk_gram_loss_use often = {205, 32, 1000, false, false};
    CHECK(qk_gram_loss_pays(&few, 1024, often));
    CHECK(qk_gram_loss_pays(&depthwise, 196, often));
    CHECK(qk_gram_loss_pays(&depthwise, 196, (qk_gram_loss_use){80, 1, 1000, false, false}));
    CHECK(!qk_gram_loss_pays(&few, 1, often));
    CHECK(!qk_gram_loss_pays(&few, 1024, (qk_gram_loss_use){205, 1, 205, false, false})); /* each sample is used once */
    CHECK(!qk_gram_loss_pays(&few, 1024, (qk_gram_loss_use){2000, 32, 100000, false, false})); /* memory */
    CHECK(!qk_gram_loss_pays(&many, 1024, often));
    const qk_gram_loss_use one = {256, 1, 1000, true, false}, of_bytes = {256, 1, 1000, true, true};
    CHECK(!qk_gram_loss_pays(&few, 1024, one));
    CHECK(qk_gram_loss_pays(&few, 1024, of_bytes));
}

static qk_status init_attempt(void *context) {
    const moved_layer *m = context;
    const int64_t samples[] = {0, 1, 2};
    gram_losses g = {0};
    qk_quadratic moments = {0};
    qk_status status = qk_reconstruction_init(&g.on, m->f.data, 3, 3, m->f.pool);
    if (status == QK_OK) status = qk_sample_grams_init(&g.grams, &g.on, m->weight, m->bias, true, 3);
    if (status == QK_OK) status = qk_gram_loss_init(&g.loss, &g.grams, 2);
    if (status == QK_OK) qk_sample_grams_add(&g.grams, samples, 3);
    if (status == QK_OK) status = qk_sample_grams_moments(&g.grams, &moments);
    qk_quadratic_destroy(&moments);
    gram_losses_free(&g); /* also of what failed */
    return status;
}

static void it_may_run_out_of_memory(void) {
    moved_layer m = moved_new(&ref_cases[11], QK_U8, true, 1);
    qk_refuse_each_allocation(init_attempt, &m);
    moved_free(&m);
}

QK_TESTS(QK_TEST(everything_is_what_the_rows_say), QK_TEST(at_the_reference_the_loss_is_its_own),
         QK_TEST(threads_do_not_change_a_bit), QK_TEST(calls_do_not_see_each_other),
         QK_TEST(moments_are_those_of_all_samples), QK_TEST(bytes_that_stand_for_other_values_are_taken_as_floats),
         QK_TEST(it_pays_with_many_positions_and_few_inputs), QK_TEST(it_may_run_out_of_memory))
