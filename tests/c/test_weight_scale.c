/* CalibMethod.MinOutputMSE against output errors measured on the rows themselves. */
#include "reference.h"

/* A layer fed with random inputs, and the same inputs as plain rows. */
typedef struct {
    qk_geometry geometry;
    qk_layer *layer;
    qk_pool *pool;
    float *weight, *rows; /* (groups * O, K), (row_count, groups * K) */
    int64_t row_count;
} fixture;

static fixture fixture_new(const ref_case *c, uint64_t seed, int threads) {
    qk_random r = {seed};
    const qk_geometry *g = &c->geometry;
    fixture f = {.geometry = *g, .pool = qk_pool_new(threads)};
    qk_tensor x = ref_tensor(&r, QK_F32, c->x_ndim, c->x_dims);
    const int64_t positions = ref_positions(g, &x), inputs = g->groups * g->inputs;
    const qk_row_choice all = {.samples = x.dims[0], .max_rows = 1000000};
    CHECK(qk_layer_new(&f.layer, g, &all, false) == QK_OK);
    CHECK(qk_layer_feed(f.layer, &x, NULL, f.pool) == QK_OK);
    CHECK(qk_layer_flush(f.layer, f.pool) == QK_OK);
    f.row_count = x.dims[0] * positions;
    f.rows = MEMORY(float, f.row_count * inputs);
    for (int64_t s = 0; s < x.dims[0]; s++) ref_inputs(g, &x, s, f.rows + s * positions * inputs);
    f.weight = qk_floats(&r, g->groups * g->outputs * g->inputs, -1, 1);
    for (int64_t i = 0; i < g->groups * g->outputs * g->inputs; i++) f.weight[i] *= f.weight[i] * f.weight[i];
    ref_free(&x);
    return f;
}

static void fixture_free(fixture *f) {
    qk_layer_free(f->layer);
    qk_pool_free(f->pool);
    free(f->weight);
    free(f->rows);
}

/* E (w x)^2 for the inputs x of an output; without its mean when a bias takes that up. */
static double power(const fixture *f, int64_t output, const double *w, bool bias_free) {
    const int64_t K = f->geometry.inputs, inputs = f->geometry.groups * K, group = output / f->geometry.outputs;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < f->row_count; i++) {
        double y = 0;
        for (int64_t k = 0; k < K; k++) y += w[k] * f->rows[i * inputs + group * K + k];
        sum += y;
        squares += y * y;
    }
    const double mean = sum / (double)f->row_count;
    return squares / (double)f->row_count - (bias_free ? mean * mean : 0);
}

/* The errors of outputs begin .. end - 1 under one scale, each relative to the output's own power plus the mean. */
static double total_error(const fixture *f, int64_t begin, int64_t end, qk_affine a, const qk_scale_problem *p) {
    const int64_t K = f->geometry.inputs;
    float *quantized = MEMORY(float, K);
    double *w = MEMORY(double, K), *d = MEMORY(double, K), error = 0, mean = 0;
    for (int64_t output = begin; output < end; output++) {
        for (int64_t k = 0; k < K; k++) w[k] = f->weight[output * K + k];
        mean += power(f, output, w, p->bias_free) / (double)(end - begin);
    }
    for (int64_t output = begin; output < end; output++) {
        qk_fake_quant(quantized, f->weight + output * K, (size_t)K, a, p->grid);
        for (int64_t k = 0; k < K; k++) {
            w[k] = f->weight[output * K + k];
            d[k] = (double)quantized[k] - w[k];
        }
        error += power(f, output, d, p->bias_free) / (power(f, output, w, p->bias_free) + mean);
    }
    free(quantized);
    free(w);
    free(d);
    return error;
}

/* The chosen scale of rows begin .. end - 1 against the whole range and against fractions of it. */
static void check_chosen(const fixture *f, int64_t begin, int64_t end, qk_affine chosen, const qk_scale_problem *p) {
    double lo = 0, hi = 0;
    const int64_t K = f->geometry.inputs;
    for (int64_t i = begin * K; i < end * K; i++) {
        lo = fmin(lo, f->weight[i]);
        hi = fmax(hi, f->weight[i]);
    }
    const double error = total_error(f, begin, end, chosen, p);
    /* A symmetric -8 .. 7 may grow until the largest weight fits above 0. */
    const double widest = p->grid.symmetric && p->grid.qmin == -8 ? 15.0 / 14 : 1;
    CHECK(chosen.scale <= widest * qk_affine_from_range(lo, hi, p->grid).scale * (1 + 1e-6));
    CHECK(error <= total_error(f, begin, end, qk_affine_from_range(lo, hi, p->grid), p) * 1.001);
    for (int i = 0; i <= 24; i++) {
        const qk_affine other = qk_affine_from_range(lo * exp2(-i / 4.0), hi * exp2(-i / 4.0), p->grid);
        CHECK(error <= total_error(f, begin, end, other, p) * 1.02);
    }
}

static const qk_grid grids[] = {{-128, 127, false}, {-127, 127, true}, {-8, 7, false}, {-8, 7, true}};

static void no_fraction_of_the_range_is_better(void) {
    const int cases[] = {0, 3, 5, 11, 12}; /* matrix, 1-D, 3x3, grouped, depthwise */
    for (int i = 0; i < 5; i++)
        for (int kind = 0; kind < 16; kind++) {
            fixture f = fixture_new(&ref_cases[cases[i]], (uint64_t)i, 1);
            const int64_t rows = f.geometry.groups * f.geometry.outputs;
            const qk_scale_problem p = {
                .weight = f.weight, .grid = grids[kind % 4], .per_channel = kind & 4, .bias_free = kind & 8};
            qk_affine *affine = MEMORY(qk_affine, rows);
            CHECK(qk_choose_weight_scale(f.layer, &p, affine, f.pool) == QK_OK);
            if (p.per_channel)
                for (int64_t row = 0; row < rows; row++) check_chosen(&f, row, row + 1, affine[row], &p);
            else
                check_chosen(&f, 0, rows, affine[0], &p);
            free(affine);
            fixture_free(&f);
        }
}

static void an_outlier_on_a_dead_input_is_clipped(void) {
    const qk_geometry g = {.groups = 1, .inputs = 8, .outputs = 4};
    const int64_t n = 200;
    qk_random r = {1};
    qk_pool *pool = qk_pool_new(1);
    float *data = qk_floats(&r, n * 8, -1, 1), *weight = qk_floats(&r, 32, -0.1f, 0.1f);
    for (int64_t i = 0; i < n; i++) data[i * 8 + 3] = 0;
    weight[8 + 3] = 5;
    const qk_tensor x = {.data = data, .ndim = 2, .dims = {n, 8}};
    qk_layer *layer;
    CHECK(qk_layer_new(&layer, &g, &(qk_row_choice){.samples = n, .max_rows = n}, false) == QK_OK);
    CHECK(qk_layer_feed(layer, &x, NULL, pool) == QK_OK);
    CHECK(qk_layer_flush(layer, pool) == QK_OK);
    const qk_scale_problem p = {.weight = weight, .grid = {-127, 127, true}};
    qk_affine affine;
    CHECK(qk_choose_weight_scale(layer, &p, &affine, pool) == QK_OK);
    CHECK(affine.scale < 0.5f * 5 / 127); /* MinMax says 5 / 127 */
    qk_layer_free(layer);
    qk_pool_free(pool);
    free(data);
    free(weight);
}

static void threads_do_not_change_a_bit(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int per_channel = 0; per_channel < 2; per_channel++) {
            qk_affine affine[3][160];
            memset(affine, 0, sizeof affine);
            for (int threads = 1; threads <= 3; threads++) {
                fixture f = fixture_new(&ref_cases[i], 3, threads);
                const qk_scale_problem p = {.weight = f.weight, .grid = grids[0], .per_channel = per_channel};
                CHECK(qk_choose_weight_scale(f.layer, &p, affine[threads - 1], f.pool) == QK_OK);
                fixture_free(&f);
            }
            CHECK_SAME(affine[0], affine[1], 160);
            CHECK_SAME(affine[0], affine[2], 160);
        }
}

static void a_layer_without_rows_is_refused(void) {
    const qk_row_choice rows = {.samples = 1, .max_rows = 1};
    const float weight[8] = {1};
    const qk_geometry g = {.groups = 1, .inputs = 8, .outputs = 1};
    const qk_scale_problem p = {.weight = weight, .grid = grids[0]};
    qk_pool *pool = qk_pool_new(1);
    qk_layer *layer;
    qk_affine affine;
    CHECK(qk_layer_new(&layer, &g, &rows, false) == QK_OK);
    CHECK(qk_choose_weight_scale(layer, &p, &affine, pool) == QK_E_NO_ROWS);
    qk_layer_free(layer);
    qk_pool_free(pool);
}

static void nan_in_the_inputs_is_refused(void) {
    const qk_row_choice rows = {.samples = 2, .max_rows = 2};
    const float weight[2] = {1, 2}, data[4] = {1, 2, NAN, 3};
    const qk_geometry g = {.groups = 1, .inputs = 2, .outputs = 1};
    const qk_scale_problem p = {.weight = weight, .grid = grids[0]};
    const qk_tensor x = {.data = data, .ndim = 2, .dims = {2, 2}};
    qk_pool *pool = qk_pool_new(1);
    qk_layer *layer;
    qk_affine affine;
    CHECK(qk_layer_new(&layer, &g, &rows, false) == QK_OK);
    CHECK(qk_layer_feed(layer, &x, NULL, pool) == QK_OK);
    CHECK(qk_layer_flush(layer, pool) == QK_OK);
    CHECK(qk_choose_weight_scale(layer, &p, &affine, pool) == QK_E_NONFINITE);
    qk_layer_free(layer);
    qk_pool_free(pool);
}

/* The squared error of rows begin .. end - 1 under the range [factor lo, factor hi]. */
static double squared_error(const float *w, int64_t begin, int64_t end, int64_t K, qk_affine a, qk_grid grid) {
    float *quantized = MEMORY(float, K);
    double error = 0;
    for (int64_t row = begin; row < end; row++) {
        qk_fake_quant(quantized, w + row * K, (size_t)K, a, grid);
        for (int64_t k = 0; k < K; k++) error += pow((double)quantized[k] - w[row * K + k], 2);
    }
    free(quantized);
    return error;
}

static const qk_scale_type scale_types[] = {QK_SCALE_FLOAT32, QK_SCALE_POWER_OF_2, QK_SCALE_INT16};

static void alone_no_fraction_of_the_range_has_less_squared_error(void) {
    enum { ROWS = 70, K = 40 };
    qk_random r = {9};
    float *w = qk_floats(&r, ROWS * K, -1, 1);
    for (int i = 0; i < ROWS * K; i++) w[i] = w[i] * w[i] * w[i] * (float)(1 + i / K % 5);
    for (int kind = 0; kind < 24; kind++) {
        qk_scale_problem p = {.weight = w, .grid = grids[kind % 4], .per_channel = kind / 4 % 2};
        p.grid.scale_type = scale_types[kind / 8];
        const int64_t count = p.per_channel ? ROWS : 1, rows = p.per_channel ? 1 : ROWS;
        qk_affine affine[2][ROWS];
        memset(affine, 0, sizeof affine);
        for (int threads = 1; threads <= 3; threads += 2) {
            qk_pool *pool = qk_pool_new(threads);
            CHECK(qk_choose_weight_scale_alone(&p, ROWS, K, affine[threads / 2], pool) == QK_OK);
            qk_pool_free(pool);
        }
        CHECK_SAME(affine[0], affine[1], count);
        for (int64_t c = 0; c < count; c++) {
            double lo = 0, hi = 0;
            for (int64_t i = c * rows * K; i < (c + 1) * rows * K; i++) lo = fmin(lo, w[i]), hi = fmax(hi, w[i]);
            const double chosen = squared_error(w, c * rows, (c + 1) * rows, K, affine[0][c], p.grid);
            CHECK(chosen <=
                  squared_error(w, c * rows, (c + 1) * rows, K, qk_affine_from_range(lo, hi, p.grid), p.grid));
            for (int i = 0; i <= 24; i++) {
                const qk_affine other = qk_affine_from_range(lo * exp2(-i / 4.0), hi * exp2(-i / 4.0), p.grid);
                CHECK(chosen <= squared_error(w, c * rows, (c + 1) * rows, K, other, p.grid) * (1 + 1e-5));
            }
        }
    }
    free(w);
}

static qk_status choose_alone(void *pool) {
    const float weight[] = {1, -2, 3, 0.5f};
    qk_affine affine[2];
    return qk_choose_weight_scale_alone(&(qk_scale_problem){.weight = weight, .grid = grids[0], .per_channel = true}, 2,
                                        2, affine, pool);
}

static void alone_it_may_run_out_of_memory_or_have_no_weight(void) {
    qk_pool *pool = qk_pool_new(1);
    qk_affine affine;
    qk_refuse_each_allocation(choose_alone, pool);
    CHECK(qk_choose_weight_scale_alone(&(qk_scale_problem){.grid = grids[0]}, 0, 3, &affine, pool) == QK_E_ARG);
    CHECK(qk_choose_weight_scale_alone(&(qk_scale_problem){.grid = grids[0]}, 3, 0, &affine, pool) == QK_E_ARG);
    qk_pool_free(pool);
}

static qk_status choose(void *context) {
    const fixture *f = context;
    const qk_scale_problem p = {.weight = f->weight, .grid = grids[0], .bias_free = true};
    qk_affine affine;
    return qk_choose_weight_scale(f->layer, &p, &affine, f->pool);
}

static void the_search_may_run_out_of_memory(void) {
    fixture f = fixture_new(&ref_cases[5], 1, 1);
    qk_refuse_each_allocation(choose, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(no_fraction_of_the_range_is_better), QK_TEST(an_outlier_on_a_dead_input_is_clipped),
         QK_TEST(threads_do_not_change_a_bit), QK_TEST(a_layer_without_rows_is_refused),
         QK_TEST(nan_in_the_inputs_is_refused), QK_TEST(the_search_may_run_out_of_memory),
         QK_TEST(alone_no_fraction_of_the_range_has_less_squared_error),
         QK_TEST(alone_it_may_run_out_of_memory_or_have_no_weight))
