/* Moments of a layer's rows against sums in float64, and what they must not depend on. */
#include "moments.h"
#include "moments/row_choice.h"
#include "reference.h"

/* Obvious loops over the chosen rows give the moments that the core must give. */
static moments naive_moments(const qk_geometry *g, const qk_tensor *x, const qk_tensor *y, const qk_row_choice *choice,
                             qk_set set) {
    const int64_t K = g->inputs, O = g->outputs, inputs = g->groups * K, outputs = g->groups * O;
    const int64_t positions = ref_positions(g, x);
    moments m = moments_new(g);
    float *xs = MEMORY(float, positions * inputs), *ys = MEMORY(float, positions * outputs);
    int64_t *rows = MEMORY(int64_t, positions), *order = MEMORY(int64_t, positions), fitted;
    for (int64_t sample = 0; sample < x->dims[0]; sample++) {
        ref_inputs(g, x, sample, xs);
        ref_outputs(g, y, sample, ys);
        const int64_t n = qk_choose_rows(choice, sample, positions, rows, order, &fitted);
        for (int64_t i = set == QK_FITTED ? 0 : fitted; i < (set == QK_FITTED ? fitted : n); i++) {
            const float *xr = xs + rows[i] * inputs, *yr = ys + rows[i] * outputs;
            m.rows++;
            for (int64_t k = 0; k < inputs; k++) m.mean_x[k] += xr[k];
            for (int64_t k = 0; k < inputs; k++)
                for (int64_t j = 0; j < K; j++) m.gram[k * K + j] += (double)xr[k] * xr[k / K * K + j];
            for (int64_t o = 0; o < outputs; o++) {
                m.mean_y[o] += yr[o];
                m.power[o] += (double)yr[o] * yr[o];
                for (int64_t j = 0; j < K; j++) m.cross[o * K + j] += (double)yr[o] * xr[o / O * K + j];
            }
        }
    }
    const double n = (double)m.rows;
    for (int64_t i = 0; i < inputs * K; i++) m.gram[i] /= n;
    for (int64_t i = 0; i < outputs * K; i++) m.cross[i] /= n;
    for (int64_t i = 0; i < inputs; i++) m.mean_x[i] /= n;
    for (int64_t i = 0; i < outputs; i++) m.mean_y[i] /= n, m.power[i] /= n;
    free(order);
    free(rows);
    free(ys);
    free(xs);
    return m;
}

/* The layer's moments; samples arrive in batches of the given size, the last one smaller. */
static moments layer_moments(const qk_geometry *g, const qk_tensor *x, const qk_tensor *y, const qk_row_choice *choice,
                             qk_set set, int64_t batch, int threads) {
    qk_pool *pool = qk_pool_new(threads);
    qk_layer *layer;
    moments m = moments_new(g);
    CHECK(qk_layer_new(&layer, g, choice, y != NULL) == QK_OK);
    for (int64_t at = 0; at < x->dims[0]; at += batch) {
        const int64_t end = at + batch < x->dims[0] ? at + batch : x->dims[0];
        const qk_tensor xb = ref_slice(x, at, end), yb = y ? ref_slice(y, at, end) : xb;
        CHECK(qk_layer_feed(layer, &xb, y ? &yb : NULL, pool) == QK_OK);
    }
    CHECK(qk_layer_flush(layer, pool) == QK_OK);
    m.rows = qk_layer_rows(layer, set);
    qk_layer_moments(layer, set, m.gram, m.cross, m.mean_x, m.mean_y, m.power);
    qk_layer_free(layer);
    qk_pool_free(pool);
    return m;
}

static void check_close(const double *a, const double *b, int64_t n, double tolerance) {
    for (int64_t i = 0; i < n; i++) CHECK_CLOSE(a[i], b[i], tolerance);
}

static void moments_are_means_of_products(void) {
    for (int i = 0; i < REF_CASES; i++) {
        const qk_geometry *g = &ref_cases[i].geometry;
        qk_random r = {(uint64_t)i};
        qk_tensor x = ref_tensor(&r, QK_F32, ref_cases[i].x_ndim, ref_cases[i].x_dims), y = ref_target(&r, g, &x);
        const qk_row_choice all = {.samples = x.dims[0], .max_rows = 1000000, .seed = 1};
        const qk_row_choice some = {.samples = x.dims[0], .max_rows = 200, .holdout = 2, .seed = 1};
        for (int run = 0; run < 3; run++) { /* all rows; some, fitted; some, held out */
            const qk_row_choice *choice = run == 0 ? &all : &some;
            const qk_set set = run == 2 ? QK_HELD_OUT : QK_FITTED;
            const moments got = layer_moments(g, &x, &y, choice, set, 2, 1);
            const moments expected = naive_moments(g, &x, &y, choice, set);
            const int64_t K = g->inputs, inputs = g->groups * K, outputs = g->groups * g->outputs;
            CHECK(got.rows == expected.rows && got.rows > 0);
            if (run == 0) CHECK(got.rows == x.dims[0] * ref_positions(g, &x));
            check_close(got.gram, expected.gram, inputs * K, 1e-13);
            check_close(got.cross, expected.cross, outputs * K, 1e-13);
            check_close(got.mean_x, expected.mean_x, inputs, 1e-13);
            check_close(got.mean_y, expected.mean_y, outputs, 1e-13);
            check_close(got.power, expected.power, outputs, 1e-13);
            moments_free(got);
            moments_free(expected);
        }
        ref_free(&x);
        ref_free(&y);
    }
}

/* What is fed beyond the plan counts too, whatever the batches. */
static void more_samples_than_planned_are_taken(void) {
    for (int i = 0; i < REF_CASES; i++) {
        const qk_geometry *g = &ref_cases[i].geometry;
        qk_random r = {(uint64_t)i};
        int64_t dims[QK_MAX_DIMS];
        memcpy(dims, ref_cases[i].x_dims, sizeof dims);
        dims[0] = 9;
        qk_tensor x = ref_tensor(&r, QK_F32, ref_cases[i].x_ndim, dims), y = ref_target(&r, g, &x);
        const qk_row_choice choice = {.samples = 2, .max_rows = 100, .holdout = 3, .seed = 1};
        for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
            const moments got = layer_moments(g, &x, &y, &choice, (qk_set)set, 2, 2);
            const moments expected = naive_moments(g, &x, &y, &choice, (qk_set)set);
            CHECK(got.rows == expected.rows && got.rows > 0);
            check_close(got.gram, expected.gram, g->groups * g->inputs * g->inputs, 1e-13);
            check_close(got.cross, expected.cross, g->groups * g->outputs * g->inputs, 1e-13);
            moments_free(got);
            moments_free(expected);
        }
        ref_free(&x);
        ref_free(&y);
    }
}

static void check_close_moments(const qk_geometry *g, moments a, moments b) {
    CHECK(a.rows == b.rows);
    check_close(a.gram, b.gram, g->groups * g->inputs * g->inputs, 2e-6);
    check_close(a.cross, b.cross, g->groups * g->outputs * g->inputs, 2e-6);
    check_close(a.mean_x, b.mean_x, g->groups * g->inputs, 2e-6);
    check_close(a.mean_y, b.mean_y, g->groups * g->outputs, 2e-6);
    check_close(a.power, b.power, g->groups * g->outputs, 2e-6);
}

static void check_same_moments(const qk_geometry *g, moments a, moments b) {
    CHECK(a.rows == b.rows);
    CHECK_SAME(a.gram, b.gram, g->groups * g->inputs * g->inputs);
    CHECK_SAME(a.cross, b.cross, g->groups * g->outputs * g->inputs);
    CHECK_SAME(a.mean_x, b.mean_x, g->groups * g->inputs);
    CHECK_SAME(a.mean_y, b.mean_y, g->groups * g->outputs);
    CHECK_SAME(a.power, b.power, g->groups * g->outputs);
}

/* More rows than a panel holds, so that panels end in the middle of a batch. */
static void batches_and_threads_do_not_change_a_bit(void) {
    for (int i = 0; i < 2 * REF_CASES; i++) {
        const ref_case *c = &ref_cases[i / 2];
        const qk_geometry *g = &c->geometry;
        qk_random r = {(uint64_t)i};
        int64_t dims[QK_MAX_DIMS];
        memcpy(dims, c->x_dims, sizeof dims);
        qk_tensor one_sample = {.ndim = c->x_ndim};
        memcpy(one_sample.dims, dims, sizeof dims);
        dims[0] = 4500 / ref_positions(g, &one_sample) + 6;
        qk_tensor x = ref_tensor(&r, i % 2 ? QK_U8 : QK_F32, c->x_ndim, dims), y = ref_target(&r, g, &x);
        const qk_row_choice choice = {.samples = dims[0], .max_rows = 1000000, .holdout = 3, .seed = 1};
        for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
            const moments whole = layer_moments(g, &x, &y, &choice, (qk_set)set, dims[0], 1);
            const int64_t batches[] = {1, 3, 5, dims[0]};
            for (int run = 0; run < 4; run++) {
                const moments other = layer_moments(g, &x, &y, &choice, (qk_set)set, batches[run], 2 + run % 2);
                check_same_moments(g, whole, other);
                moments_free(other);
            }
            moments_free(whole);
        }
        ref_free(&x);
        ref_free(&y);
    }
}

static void eight_bit_inputs_are_the_floats_they_stand_for(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int dtype = QK_U8; dtype <= QK_I8; dtype++) {
            const qk_geometry *g = &ref_cases[i].geometry;
            qk_random r = {(uint64_t)i};
            qk_tensor x = ref_tensor(&r, (qk_dtype)dtype, ref_cases[i].x_ndim, ref_cases[i].x_dims), real = x;
            qk_tensor y = ref_target(&r, g, &x);
            float *values = MEMORY(float, ref_elements(&x));
            for (int64_t k = 0; k < ref_elements(&x); k++) values[k] = ref_value(&x, k);
            real.data = values;
            real.dtype = QK_F32;
            const qk_row_choice choice = {.samples = x.dims[0], .max_rows = 500, .seed = 2};
            const moments a = layer_moments(g, &x, &y, &choice, QK_FITTED, 2, 1);
            const moments b = layer_moments(g, &real, &y, &choice, QK_FITTED, 2, 1);
            check_close_moments(g, a, b);
            moments_free(a);
            moments_free(b);
            free(values);
            ref_free(&x);
            ref_free(&y);
        }
}

/* The second half of the samples stands for the same values by another scale, or is float. */
static void inputs_of_another_kind_may_follow(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int kind = 0; kind < 3; kind++) {
            const qk_geometry *g = &ref_cases[i].geometry;
            qk_random r = {(uint64_t)i};
            int64_t dims[QK_MAX_DIMS];
            memcpy(dims, ref_cases[i].x_dims, sizeof dims);
            dims[0] = 8;
            qk_tensor x = ref_tensor(&r, QK_U8, ref_cases[i].x_ndim, dims), y = ref_target(&r, g, &x), real = x;
            const int64_t n = ref_elements(&x), half = n / 2;
            uint8_t *doubled = MEMORY(uint8_t, n);
            float *values = MEMORY(float, n);
            for (int64_t k = 0; k < n; k++) {
                doubled[k] = (uint8_t)(((const uint8_t *)x.data)[k] % 16 * 8);
                values[k] = (float)(doubled[k] - 8) * 0.5f;
            }
            qk_tensor first = x, then = x;
            first.data = doubled;
            first.affine = then.affine = (qk_affine){0.5f, 8};
            then.data = doubled;
            if (kind == 0) { /* half the integers, double the scale */
                for (int64_t k = half; k < n; k++) doubled[k] /= 2;
                then.affine = (qk_affine){1, 4};
            } else if (kind == 1) { /* a zero point that is no byte: of 256 steps less */
                then.affine = (qk_affine){0.5f, 8 + 256};
                for (int64_t k = half; k < n; k++) values[k] -= 128;
            } else {
                then.dtype = QK_F32;
                then.data = values;
            }
            real.data = values;
            real.dtype = QK_F32;
            const qk_row_choice choice = {.samples = 8, .max_rows = 500, .seed = 2};
            qk_pool *pool = qk_pool_new(1);
            qk_layer *layer;
            moments got = moments_new(g), expected = layer_moments(g, &real, &y, &choice, QK_FITTED, 8, 1);
            CHECK(qk_layer_new(&layer, g, &choice, true) == QK_OK);
            for (int part = 0; part < 2; part++) {
                const qk_tensor xs = ref_slice(part ? &then : &first, 4 * part, 4 * part + 4);
                const qk_tensor ys = ref_slice(&y, 4 * part, 4 * part + 4);
                CHECK(qk_layer_feed(layer, &xs, &ys, pool) == QK_OK);
            }
            CHECK(qk_layer_flush(layer, pool) == QK_OK);
            got.rows = qk_layer_rows(layer, QK_FITTED);
            qk_layer_moments(layer, QK_FITTED, got.gram, got.cross, got.mean_x, got.mean_y, got.power);
            check_close_moments(g, got, expected);
            moments_free(got);
            moments_free(expected);
            qk_layer_free(layer);
            qk_pool_free(pool);
            free(doubled);
            free(values);
            ref_free(&x);
            ref_free(&y);
        }
}

static void without_target_only_the_inputs_count(void) {
    for (int i = 0; i < REF_CASES; i++) {
        const qk_geometry *g = &ref_cases[i].geometry;
        qk_random r = {(uint64_t)i};
        qk_tensor x = ref_tensor(&r, QK_F32, ref_cases[i].x_ndim, ref_cases[i].x_dims), y = ref_target(&r, g, &x);
        const qk_row_choice choice = {.samples = x.dims[0], .max_rows = 500, .seed = 2};
        const moments with = layer_moments(g, &x, &y, &choice, QK_FITTED, 1, 1);
        const moments without = layer_moments(g, &x, NULL, &choice, QK_FITTED, 1, 1);
        check_close(with.gram, without.gram, g->groups * g->inputs * g->inputs, 2e-6); /* panels are shorter without */
        check_close(with.mean_x, without.mean_x, g->groups * g->inputs, 2e-6);
        for (int64_t o = 0; o < g->groups * g->outputs; o++) CHECK(without.power[o] == 0); /* left alone */
        moments_free(with);
        moments_free(without);
        ref_free(&x);
        ref_free(&y);
    }
}

/* A layer that was fed one batch and flushed. */
static qk_layer *fed_layer(const qk_geometry *g, const qk_tensor *x, const qk_tensor *y, int holdout, qk_pool *pool) {
    const qk_row_choice choice = {.samples = x->dims[0], .max_rows = 1000000, .holdout = holdout, .seed = 3};
    qk_layer *layer;
    CHECK(qk_layer_new(&layer, g, &choice, y != NULL) == QK_OK);
    CHECK(qk_layer_feed(layer, x, y, pool) == QK_OK);
    CHECK(qk_layer_flush(layer, pool) == QK_OK);
    return layer;
}

/* Two convolutions have one weight, with other strides and pads and on inputs of other sizes. */
static void joined_layers_have_the_rows_of_both(void) {
    const qk_geometry one = {2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
    const qk_geometry two = {2, QK_PAD_VALID, 2, 3, 18, {3, 3}, {2, 2}, {1, 1}, {0}, {0}};
    const int64_t dims_one[] = {5, 4, 6, 7}, dims_two[] = {4, 4, 9, 8};
    qk_random r = {5};
    qk_tensor x1 = ref_tensor(&r, QK_F32, 4, dims_one), x2 = ref_tensor(&r, QK_F32, 4, dims_two);
    qk_tensor y1 = ref_target(&r, &one, &x1), y2 = ref_target(&r, &two, &x2);
    qk_pool *pool = qk_pool_new(2);
    qk_layer *a = fed_layer(&one, &x1, &y1, 2, pool), *b = fed_layer(&two, &x2, &y2, 2, pool);
    CHECK(qk_layer_join(a, b, pool) == QK_OK);
    for (int set = 0; set < 2; set++) {
        const qk_row_choice c1 = {.samples = 5, .max_rows = 1000000, .holdout = 2, .seed = 3};
        const qk_row_choice c2 = {.samples = 4, .max_rows = 1000000, .holdout = 2, .seed = 3};
        const moments m1 = naive_moments(&one, &x1, &y1, &c1, set), m2 = naive_moments(&two, &x2, &y2, &c2, set);
        const moments m = moments_new(&one);
        qk_layer_moments(a, set, m.gram, m.cross, m.mean_x, m.mean_y, m.power);
        CHECK(qk_layer_rows(a, set) == m1.rows + m2.rows);
        const double *parts[][3] = {{m.gram, m1.gram, m2.gram},
                                    {m.cross, m1.cross, m2.cross},
                                    {m.mean_x, m1.mean_x, m2.mean_x},
                                    {m.mean_y, m1.mean_y, m2.mean_y},
                                    {m.power, m1.power, m2.power}};
        const int64_t counts[] = {2 * 18 * 18, 2 * 3 * 18, 36, 6, 6};
        const double w1 = (double)m1.rows / (double)(m1.rows + m2.rows);
        for (int part = 0; part < 5; part++)
            for (int64_t i = 0; i < counts[part]; i++)
                CHECK_CLOSE(parts[part][0][i], w1 * parts[part][1][i] + (1 - w1) * parts[part][2][i], 1e-5);
        moments_free(m);
        moments_free(m1);
        moments_free(m2);
    }
    qk_layer_free(a);
    qk_layer_free(b);
    qk_pool_free(pool);
    ref_free(&x1), ref_free(&x2), ref_free(&y1), ref_free(&y2);
}

/* Two ConvTransposes have one weight with other strides: what the rows of one see is not cut as the other's is. They
 * join in either order, and rows may follow. */
static void joined_layers_may_have_other_strides(void) {
    const qk_geometry two[] = {{2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {2, 3}, {1, 1}, {1, 1}, {1, 1}, true},
                               {2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {4, 1}, {1, 1}, {0, 1}, {1, 0}, true},
                               {2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, true}};
    const int64_t dims[] = {4, 4, 5, 6};
    qk_random r = {5};
    qk_tensor x = ref_tensor(&r, QK_F32, 4, dims);
    qk_pool *pool = qk_pool_new(2);
    for (int i = 0; i < 9; i++) {
        const qk_geometry *a = &two[i / 3], *b = &two[i % 3];
        qk_tensor ya = ref_target(&r, a, &x), yb = ref_target(&r, b, &x);
        qk_layer *layer = fed_layer(a, &x, &ya, 0, pool), *other = fed_layer(b, &x, &yb, 0, pool);
        CHECK(qk_layer_join(layer, other, pool) == QK_OK);
        CHECK(qk_layer_feed(layer, &x, &ya, pool) == QK_OK);
        CHECK(qk_layer_flush(layer, pool) == QK_OK);
        const qk_row_choice first = {.samples = 4, .max_rows = 1000000, .seed = 3};
        const moments ma = naive_moments(a, &x, &ya, &first, QK_FITTED);
        const moments mb = naive_moments(b, &x, &yb, &first, QK_FITTED), m = moments_new(a);
        qk_layer_moments(layer, QK_FITTED, m.gram, m.cross, m.mean_x, m.mean_y, m.power);
        CHECK(qk_layer_rows(layer, QK_FITTED) == 2 * ma.rows + mb.rows);
        const double w = 2 * (double)ma.rows / (double)(2 * ma.rows + mb.rows);
        for (int64_t k = 0; k < 2 * 18 * 18; k++) CHECK_CLOSE(m.gram[k], w * ma.gram[k] + (1 - w) * mb.gram[k], 1e-5);
        for (int64_t k = 0; k < 6 * 18; k++) CHECK_CLOSE(m.cross[k], w * ma.cross[k] + (1 - w) * mb.cross[k], 1e-5);
        for (int64_t o = 0; o < 6; o++) CHECK_CLOSE(m.power[o], w * ma.power[o] + (1 - w) * mb.power[o], 1e-5);
        moments_free(m), moments_free(ma), moments_free(mb);
        qk_layer_free(layer), qk_layer_free(other);
        ref_free(&ya), ref_free(&yb);
    }
    qk_pool_free(pool);
    ref_free(&x);
}

static void layers_that_are_not_alike_do_not_join(void) {
    const qk_geometry good = {.groups = 1, .inputs = 3, .outputs = 2};
    const qk_geometry others[] = {{.groups = 1, .inputs = 2, .outputs = 2},
                                  {.groups = 1, .inputs = 3, .outputs = 1},
                                  {2, QK_PAD_VALID, 2, 2, 3, {1, 3}, {1, 1}, {1, 1}, {0}, {0}}};
    const qk_row_choice held = {.samples = 4, .max_rows = 100, .holdout = 2}, all = {.samples = 4, .max_rows = 100};
    qk_pool *pool = qk_pool_new(1);
    qk_layer *layer, *other;
    CHECK(qk_layer_new(&layer, &good, &held, true) == QK_OK);
    CHECK(qk_layer_join(layer, layer, pool) == QK_E_ARG);
    for (int i = 0; i < 5; i++) {
        CHECK(qk_layer_new(&other, i < 3 ? &others[i] : &good, i == 3 ? &all : &held, i != 4) == QK_OK);
        CHECK(qk_layer_join(layer, other, pool) == QK_E_ARG);
        qk_layer_free(other);
    }
    qk_layer_free(layer);
    qk_pool_free(pool);
}

static const qk_geometry matrix = {.groups = 1, .inputs = 3, .outputs = 2};

static void bad_arguments_are_refused(void) {
    const qk_row_choice rows = {.samples = 4, .max_rows = 100};
    const qk_geometry good = {1, QK_PAD_EXPLICIT, 1, 4, 6, {3}, {2}, {2}, {1}, {3}};
    qk_layer *layer;
    for (int i = 0; i < 12; i++) {
        qk_geometry g = good;
        int64_t *fields[] = {&g.groups, &g.outputs, &g.inputs, &g.kernel[0], &g.stride[0], &g.dilation[0]};
        if (i < 6) *fields[i] = 0;
        if (i == 6) g.pad_begin[0] = -1;
        if (i == 7) g.spatial = QK_MAX_SPATIAL + 1;
        if (i == 8) g.output_padding[0] = -1;
        if (i == 9) g.output_shape[0] = -1;
        if (i == 10) g = (qk_geometry){.groups = 1, .inputs = 3, .outputs = 2, .transposed = true};
        if (i == 11) g.inputs = 7; /* not so many for each tap */
        CHECK(qk_layer_new(&layer, &g, &rows, true) == QK_E_ARG);
        CHECK(layer == NULL);
    }
    const qk_row_choice bad[] = {{.samples = 0, .max_rows = 1},
                                 {.samples = 1, .max_rows = 0},
                                 {.samples = 1, .max_rows = 1, .holdout = 1},
                                 {.samples = 1, .max_rows = 1, .holdout = -1}};
    for (int i = 0; i < 4; i++) CHECK(qk_layer_new(&layer, &good, &bad[i], true) == QK_E_ARG);
}

static void a_batch_that_does_not_fit_is_refused(void) {
    const qk_row_choice rows = {.samples = 4, .max_rows = 100};
    const float data[16] = {0};
    const qk_tensor x = {.data = data, .ndim = 2, .dims = {2, 3}}, y = {.data = data, .ndim = 2, .dims = {2, 2}};
    qk_pool *pool = qk_pool_new(1);
    qk_layer *layer;
    CHECK(qk_layer_new(&layer, &matrix, &rows, true) == QK_OK);
    CHECK(qk_layer_feed(layer, &y, &y, pool) == QK_E_SHAPE);
    CHECK(qk_layer_feed(layer, &x, NULL, pool) == QK_E_ARG);
    CHECK(qk_layer_feed(layer, &x, &y, pool) == QK_OK);
    CHECK(qk_layer_flush(layer, pool) == QK_OK);
    CHECK(qk_layer_rows(layer, QK_FITTED) == 2);
    qk_layer_free(layer);
    qk_pool_free(pool);
}

typedef struct {
    const qk_geometry *geometry;
    qk_pool *pool;
} attempt;

static qk_status feed_and_flush(void *context) {
    const qk_geometry *g = ((attempt *)context)->geometry;
    qk_pool *pool = ((attempt *)context)->pool;
    qk_random r = {1};
    const int64_t dims[] = {6, g->groups * 2, 8, 8};
    qk_tensor x = ref_tensor(&r, QK_F32, 4, dims), y = ref_target(&r, g, &x);
    const qk_row_choice rows = {.samples = 6, .max_rows = 1000000, .holdout = 3};
    qk_layer *layer;
    qk_status status = qk_layer_new(&layer, g, &rows, true);
    if (status == QK_OK) {
        status = qk_layer_feed(layer, &x, &y, pool);
        CHECK(status == QK_OK || qk_layer_feed(layer, &x, &y, pool) == status); /* half a batch is in it */
    }
    if (status == QK_OK) status = qk_layer_flush(layer, pool);
    qk_layer_free(layer);
    ref_free(&x);
    ref_free(&y);
    return status;
}

static qk_status join_two(void *context) {
    qk_pool *pool = ((attempt *)context)->pool;
    const qk_row_choice rows = {.samples = 6, .max_rows = 1000000, .holdout = 3};
    qk_layer *layer, *other = NULL;
    qk_status status = qk_layer_new(&layer, ((attempt *)context)->geometry, &rows, true);
    if (status == QK_OK) status = qk_layer_new(&other, ((attempt *)context)->geometry, &rows, true);
    if (status == QK_OK) status = qk_layer_join(layer, other, pool);
    qk_layer_free(layer);
    qk_layer_free(other);
    return status;
}

static void a_layer_may_run_out_of_memory(void) {
    const qk_geometry dense = {2, QK_PAD_VALID, 1, 3, 18, {3, 3}, {1, 1}, {1, 1}, {0}, {0}};
    const qk_geometry grouped = {2, QK_PAD_VALID, 4, 1, 18, {3, 3}, {1, 1}, {1, 1}, {0}, {0}};
    const qk_geometry phases = {2, QK_PAD_VALID, 1, 3, 8, {2, 2}, {2, 3}, {1, 1}, {0}, {0}, true};
    qk_pool *pool = qk_pool_new(1);
    qk_refuse_each_allocation(feed_and_flush, &(attempt){&dense, pool});
    qk_refuse_each_allocation(feed_and_flush, &(attempt){&grouped, pool});
    qk_refuse_each_allocation(feed_and_flush, &(attempt){&phases, pool});
    qk_refuse_each_allocation(join_two, &(attempt){&phases, pool});
    qk_pool_free(pool);
}

QK_TESTS(QK_TEST(moments_are_means_of_products), QK_TEST(more_samples_than_planned_are_taken),
         QK_TEST(batches_and_threads_do_not_change_a_bit), QK_TEST(eight_bit_inputs_are_the_floats_they_stand_for),
         QK_TEST(inputs_of_another_kind_may_follow), QK_TEST(without_target_only_the_inputs_count),
         QK_TEST(joined_layers_have_the_rows_of_both), QK_TEST(joined_layers_may_have_other_strides),
         QK_TEST(layers_that_are_not_alike_do_not_join), QK_TEST(bad_arguments_are_refused),
         QK_TEST(a_batch_that_does_not_fit_is_refused), QK_TEST(a_layer_may_run_out_of_memory))
