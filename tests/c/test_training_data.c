/* Samples kept by reference, and their inputs piece by piece. */
#include "loss/training_data.h"

#include "reference.h"

static qk_training_data *data_new(const qk_geometry *g, int holdout) {
    qk_training_data *d;
    CHECK(qk_training_data_new(&d, g, NULL, holdout) == QK_OK);
    return d;
}

/* Positions of a sample below, at and above 512 and twice that. */
static const ref_case sizes[] = {
    {"511", {1, QK_PAD_EXPLICIT, 1, 2, 6, {3}, {1}, {1}, {1}, {1}}, 3, {2, 2, 511}},
    {"512", {1, QK_PAD_EXPLICIT, 1, 2, 6, {3}, {1}, {1}, {1}, {1}}, 3, {2, 2, 512}},
    {"513", {1, QK_PAD_EXPLICIT, 1, 2, 6, {3}, {1}, {1}, {1}, {1}}, 3, {2, 2, 513}},
    {"1024", {.groups = 1, .inputs = 3, .outputs = 2}, 3, {2, 1024, 3}},
    {"1025", {2, QK_PAD_EXPLICIT, 2, 1, 4, {2, 2}, {1, 1}, {1, 1}, {0, 0}, {0, 0}}, 4, {2, 2, 26, 42}},
};
enum { SIZES = sizeof sizes / sizeof *sizes };

static const ref_case *case_of(int i) { return i < REF_CASES ? &ref_cases[i] : &sizes[i - REF_CASES]; }

static bool same_line(const float *line, const float *rows, int64_t first, int64_t n, int64_t inputs, int64_t input) {
    for (int64_t i = 0; i < n; i++)
        if (line[i] != rows[(first + i) * inputs + input]) return false;
    return true;
}

/* Every piece of every group of every sample, filled into the middle of a panel. */
static void check_pieces(const ref_case *c, qk_dtype dtype, int64_t size) {
    enum { LEFT = 5, RIGHT = 3 };
    const qk_geometry *g = &c->geometry;
    qk_random random = {(uint64_t)dtype + 3};
    qk_tensor x = ref_tensor(&random, dtype, c->x_ndim, c->x_dims), y = ref_target(&random, g, &x);
    const int64_t K = g->inputs, inputs = g->groups * K, positions = ref_positions(g, &x);
    const int64_t ld = LEFT + size + RIGHT;
    float *rows = MEMORY(float, positions * inputs), *panel = MEMORY(float, K * ld);
    qk_training_data *d = data_new(g, 0);
    CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_OK);
    CHECK(d->count == x.dims[0]);
    CHECK(d->extent.positions == positions);
    qk_pieces pieces;
    CHECK(qk_pieces_init(&pieces, d, size) == QK_OK);
    CHECK(pieces.count == (positions + size - 1) / size);
    for (int64_t s = 0; s < d->count; s++) {
        ref_inputs(g, &x, s, rows);
        for (int64_t piece = 0; piece < pieces.count; piece++)
            for (int64_t group = 0; group < g->groups; group++) {
                const int64_t first = piece * size, n = pieces.tables[piece].count;
                CHECK(n == (positions - first < size ? positions - first : size));
                for (int64_t i = 0; i < K * ld; i++) panel[i] = -77;
                qk_fill_piece(d, d->x[s], &(qk_piece_fill){&pieces.tables[piece], group, panel, ld, LEFT, NULL});
                for (int64_t k = 0; k < K; k++) {
                    CHECK(same_line(panel + k * ld + LEFT, rows, first, n, inputs, group * K + k));
                    CHECK(panel[k * ld + LEFT - 1] == -77 && panel[k * ld + LEFT + n] == -77);
                }
            }
    }
    qk_pieces_destroy(&pieces);
    qk_training_data_free(d);
    free(panel);
    free(rows);
    ref_free(&x);
    ref_free(&y);
}

static void pieces_are_the_inputs_of_their_positions(void) {
    for (int i = 0; i < REF_CASES + SIZES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
            check_pieces(case_of(i), (qk_dtype)dtype, 512);
            check_pieces(case_of(i), (qk_dtype)dtype, 32);
        }
}

static void samples_stay_where_the_caller_has_them(void) {
    const ref_case *c = &ref_cases[5]; /* 3x3 */
    const int64_t sizes_of_batches[] = {1, 4, 2};
    qk_training_data *d = data_new(&c->geometry, 0);
    for (int dtype = QK_F32; dtype <= QK_U8; dtype++) {
        qk_random random = {5};
        qk_tensor x[3], y[3];
        int64_t dims[QK_MAX_DIMS], count = 0;
        memcpy(dims, c->x_dims, sizeof dims);
        qk_training_data_free(d);
        d = data_new(&c->geometry, 0);
        for (int i = 0; i < 3; i++) {
            dims[0] = sizes_of_batches[i];
            x[i] = ref_tensor(&random, (qk_dtype)dtype, c->x_ndim, dims);
            y[i] = ref_target(&random, &c->geometry, &x[i]);
            x[i].affine.zero_point += i; /* each batch may have its own */
            CHECK(qk_training_data_add(d, &x[i], NULL, &y[i]) == QK_OK);
        }
        for (int i = 0; i < 3; i++)
            for (int64_t s = 0; s < x[i].dims[0]; s++, count++) {
                CHECK(d->x[count].data == ref_slice(&x[i], s, s + 1).data);
                CHECK(d->y[count].data == ref_slice(&y[i], s, s + 1).data);
                CHECK(d->x[count].dims[0] == 1 && d->y[count].dims[0] == 1);
                CHECK(d->x[count].affine.zero_point == x[i].affine.zero_point);
            }
        CHECK(d->count == count);
        for (int i = 0; i < 3; i++) ref_free(&x[i]), ref_free(&y[i]);
    }
    qk_training_data_free(d);
}

static void many_samples_one_by_one(void) {
    const ref_case *c = &ref_cases[0];
    qk_random random = {6};
    int64_t dims[QK_MAX_DIMS] = {100, c->x_dims[1]};
    qk_tensor x = ref_tensor(&random, QK_F32, 2, dims), y = ref_target(&random, &c->geometry, &x);
    qk_training_data *d = data_new(&c->geometry, 0);
    for (int64_t s = 0; s < dims[0]; s++) {
        const qk_tensor one = ref_slice(&x, s, s + 1), target = ref_slice(&y, s, s + 1);
        CHECK(qk_training_data_add(d, &one, NULL, &target) == QK_OK);
    }
    CHECK(d->count == dims[0]);
    for (int64_t s = 0; s < d->count; s++) CHECK(d->x[s].data == ref_slice(&x, s, s + 1).data);
    qk_training_data_free(d);
    ref_free(&x);
    ref_free(&y);
}

static void every_holdout_th_sample_judges_if_there_are_enough(void) {
    const ref_case *c = &ref_cases[0];
    for (int holdout = 0; holdout < 6; holdout++)
        for (int64_t samples = 1; samples < 14; samples++) {
            if (holdout == 1) continue;
            qk_random random = {7};
            int64_t dims[QK_MAX_DIMS] = {samples, c->x_dims[1]};
            qk_tensor x = ref_tensor(&random, QK_F32, 2, dims), y = ref_target(&random, &c->geometry, &x);
            qk_training_data *d = data_new(&c->geometry, holdout);
            CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_OK);
            for (int64_t s = 0; s < samples; s++) {
                const bool expected = holdout > 0 && samples >= 2 * holdout && (s + 1) % holdout == 0;
                CHECK(qk_is_held_out(d, s) == expected);
            }
            qk_training_data_free(d);
            ref_free(&x);
            ref_free(&y);
        }
}

static void nothing_can_be_learnt_when_all_samples_judge(void) {
    qk_training_data *some = data_new(&ref_cases[0].geometry, 0), *d = some;
    CHECK(qk_training_data_new(&d, &ref_cases[0].geometry, NULL, 1) == QK_E_ARG);
    CHECK(d == NULL);
    CHECK(qk_training_data_new(&d, &ref_cases[0].geometry, NULL, -2) == QK_E_ARG);
    qk_training_data_free(d);
    qk_training_data_free(some);
}

static void shapes_that_differ_are_refused(void) {
    const ref_case *c = &ref_cases[5]; /* 3x3: x (4, 3, 12, 20) */
    qk_random random = {8};
    qk_tensor x = ref_tensor(&random, QK_F32, 4, c->x_dims), y = ref_target(&random, &c->geometry, &x);
    qk_training_data *d = data_new(&c->geometry, 0);
    CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_OK);
    for (int axis = 1; axis < 4; axis++) { /* another number of channels, lines, columns */
        int64_t dims[QK_MAX_DIMS];
        memcpy(dims, c->x_dims, sizeof dims);
        dims[axis]++;
        qk_tensor other = ref_tensor(&random, QK_F32, 4, dims), target = ref_target(&random, &c->geometry, &other);
        CHECK(qk_training_data_add(d, &other, NULL, &target) == QK_E_SHAPE);
        ref_free(&other);
        ref_free(&target);
    }
    qk_tensor bytes = ref_tensor(&random, QK_U8, 4, c->x_dims), wrong = y;
    CHECK(qk_training_data_add(d, &bytes, NULL, &y) == QK_E_SHAPE); /* the first samples were float32 */
    wrong.dtype = QK_U8;
    CHECK(qk_training_data_add(d, &x, NULL, &wrong) == QK_E_SHAPE);
    wrong = y;
    wrong.dims[1]--;
    CHECK(qk_training_data_add(d, &x, NULL, &wrong) == QK_E_SHAPE);
    wrong = ref_slice(&y, 0, 3);
    CHECK(qk_training_data_add(d, &x, NULL, &wrong) == QK_E_SHAPE);
    CHECK(d->count == 4); /* what was refused left nothing behind */
    CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_OK);
    CHECK(d->count == 8);
    qk_training_data_free(d);
    ref_free(&bytes);
    ref_free(&x);
    ref_free(&y);
}

/* They must have the shape of the others, be float32, and come for all samples or for none. */
static void float_inputs_that_do_not_fit_are_refused(void) {
    const ref_case *c = &ref_cases[5];
    qk_random random = {10};
    qk_tensor x = ref_tensor(&random, QK_U8, 4, c->x_dims), y = ref_target(&random, &c->geometry, &x);
    qk_tensor x_float = ref_tensor(&random, QK_F32, 4, c->x_dims), wrong;
    qk_training_data *d = data_new(&c->geometry, 0);
    for (int run = 0; run < 2; run++) { /* the first samples, and further ones */
        for (int axis = 0; axis < 4; axis++) {
            wrong = x_float;
            wrong.dims[axis]--;
            CHECK(qk_training_data_add(d, &x, &wrong, &y) == QK_E_SHAPE);
        }
        wrong = x_float;
        wrong.ndim = 3;
        CHECK(qk_training_data_add(d, &x, &wrong, &y) == QK_E_SHAPE);
        CHECK(qk_training_data_add(d, &x, &x, &y) == QK_E_SHAPE); /* 8 bits */
        CHECK(d->count == run * c->x_dims[0]);
        CHECK(qk_training_data_add(d, &x, &x_float, &y) == QK_OK);
        CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_E_SHAPE);
    }
    for (int64_t s = 0; s < d->count; s++) {
        const int64_t i = s % c->x_dims[0];
        CHECK(d->x_float[s].data == ref_slice(&x_float, i, i + 1).data && d->x_float[s].dims[0] == 1);
    }
    qk_training_data_free(d);
    d = data_new(&c->geometry, 0);
    CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_OK);
    CHECK(qk_training_data_add(d, &x, &x_float, &y) == QK_E_SHAPE);
    CHECK(d->x_float[0].data == NULL);
    qk_training_data_free(d);
    ref_free(&x);
    ref_free(&x_float);
    ref_free(&y);
}

static void stages_that_make_no_sense_are_refused(void) {
    const qk_output_stage softmax = {.activation = {.kind = QK_SOFTMAX}, .axis = 1};
    const qk_output_stage grid = {.quantized = true, .affine = {0.1f, 0}, .grid = {.qmin = -8, .qmax = 7}};
    qk_output_stage stages[] = {softmax, grid, grid, grid, grid};
    stages[0].folded = true; /* no end of a grid does what softmax does */
    stages[1].affine.scale = 0;
    stages[2].affine.scale = -1;
    stages[3].affine.scale = NAN;
    stages[4].grid.qmin = 7;
    qk_training_data *d;
    for (int i = 0; i < 5; i++) {
        CHECK(qk_training_data_new(&d, &ref_cases[0].geometry, &stages[i], 0) == QK_E_ARG);
        CHECK(d == NULL);
    }
}

/* Axes are those of y, and 0 are the samples. */
static void softmax_needs_an_axis_of_the_output(void) {
    qk_random random = {12};
    for (int i = 0; i < REF_CASES; i++) {
        qk_tensor x = ref_tensor(&random, QK_F32, ref_cases[i].x_ndim, ref_cases[i].x_dims);
        qk_tensor y = ref_target(&random, &ref_cases[i].geometry, &x);
        for (int axis = -y.ndim - 1; axis <= y.ndim; axis++) {
            const int from_the_front = axis < 0 ? axis + y.ndim : axis;
            const qk_output_stage stage = {.activation = {.kind = QK_SOFTMAX}, .axis = axis};
            qk_training_data *d;
            CHECK(qk_training_data_new(&d, &ref_cases[i].geometry, &stage, 0) == QK_OK);
            CHECK(qk_training_data_add(d, &x, NULL, &y) ==
                  (from_the_front > 0 && from_the_front < y.ndim ? QK_OK : QK_E_SHAPE));
            qk_training_data_free(d);
        }
        ref_free(&x);
        ref_free(&y);
    }
}

/* Anywhere: in the first or the last value of the first or the last sample. */
static void one_value_that_is_not_finite_is_seen(void) {
    const ref_case *c = &ref_cases[5];
    const float bad[] = {NAN, INFINITY, -INFINITY};
    qk_random random = {13};
    qk_tensor tensors[3] = {ref_tensor(&random, QK_F32, 4, c->x_dims), ref_tensor(&random, QK_F32, 4, c->x_dims)};
    tensors[2] = ref_target(&random, &c->geometry, &tensors[0]);
    qk_training_data *d = data_new(&c->geometry, 0);
    CHECK(qk_training_data_add(d, &tensors[0], &tensors[1], &tensors[2]) == QK_OK);
    CHECK(qk_samples_are_finite(d));
    for (int which = 0; which < 3; which++) {
        const int64_t n = ref_elements(&tensors[which]), places[] = {0, n / 2, n - 1};
        for (int i = 0; i < 3; i++) {
            float *at = (float *)tensors[which].data + places[i], kept = *at;
            *at = bad[(which + i) % 3];
            CHECK(!qk_samples_are_finite(d));
            *at = kept;
        }
    }
    CHECK(qk_samples_are_finite(d));
    qk_training_data_free(d);
    qk_tensor bytes = ref_tensor(&random, QK_U8, 4, c->x_dims);
    memset((void *)bytes.data, 0xff, (size_t)ref_elements(&bytes)); /* NaN, were it float32 */
    d = data_new(&c->geometry, 0);
    CHECK(qk_training_data_add(d, &bytes, NULL, &tensors[2]) == QK_OK);
    CHECK(qk_samples_are_finite(d));
    qk_training_data_free(d);
    ref_free(&bytes);
    for (int i = 0; i < 3; i++) ref_free(&tensors[i]);
}

static void a_sample_without_positions_is_refused(void) {
    const qk_geometry g = {1, QK_PAD_EXPLICIT, 1, 2, 10, {5}, {1}, {1}, {0}, {0}};
    const float nothing = 0;
    const qk_tensor x = {&nothing, QK_F32, 3, {1, 2, 4}, {1, 0}}, y = {&nothing, QK_F32, 3, {1, 2, 0}, {1, 0}};
    qk_training_data *d = data_new(&g, 0);
    CHECK(qk_training_data_add(d, &x, NULL, &y) == QK_E_SHAPE);
    qk_training_data_free(d);
}

static qk_status build_attempt(void *context) {
    const qk_tensor *tensors = context;
    qk_training_data *d;
    qk_status status = qk_training_data_new(&d, &sizes[4].geometry, NULL, 0);
    if (status == QK_OK) status = qk_training_data_add(d, &tensors[0], NULL, &tensors[1]);
    qk_training_data_free(d);
    return status;
}

static void building_may_run_out_of_memory(void) {
    qk_random random = {9};
    qk_tensor tensors[2] = {ref_tensor(&random, QK_F32, sizes[4].x_ndim, sizes[4].x_dims)};
    tensors[1] = ref_target(&random, &sizes[4].geometry, &tensors[0]);
    qk_refuse_each_allocation(build_attempt, tensors);
    ref_free(&tensors[0]);
    ref_free(&tensors[1]);
}

QK_TESTS(QK_TEST(pieces_are_the_inputs_of_their_positions), QK_TEST(samples_stay_where_the_caller_has_them),
         QK_TEST(many_samples_one_by_one), QK_TEST(every_holdout_th_sample_judges_if_there_are_enough),
         QK_TEST(nothing_can_be_learnt_when_all_samples_judge), QK_TEST(shapes_that_differ_are_refused),
         QK_TEST(float_inputs_that_do_not_fit_are_refused), QK_TEST(stages_that_make_no_sense_are_refused),
         QK_TEST(softmax_needs_an_axis_of_the_output), QK_TEST(one_value_that_is_not_finite_is_seen),
         QK_TEST(a_sample_without_positions_is_refused), QK_TEST(building_may_run_out_of_memory))
