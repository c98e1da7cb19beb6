/* Layers that keep their rows: against the rows themselves, and against the moments of layers that do not. */
#include "base/sizes.h"
#include "moments.h"
#include "moments/kept_rows.h"
#include "reference.h"

enum { MANY = QK_MOST_KEPT, SAMPLES = 12 };

typedef struct {
    qk_geometry geometry;
    qk_tensor x, y;
} data;

static data data_of(int i, qk_dtype dtype, uint64_t seed) {
    qk_random r = {seed};
    data d = {.geometry = ref_cases[i].geometry};
    int64_t dims[QK_MAX_DIMS];
    memcpy(dims, ref_cases[i].x_dims, sizeof dims);
    dims[0] = SAMPLES;
    d.x = ref_tensor(&r, dtype, ref_cases[i].x_ndim, dims);
    d.y = ref_target(&r, &d.geometry, &d.x);
    return d;
}

static void data_free(data *d) {
    ref_free(&d->x);
    ref_free(&d->y);
}

/* Fed batch by batch. */
static qk_layer *fed(const data *d, qk_row_choice choice, int64_t batch, qk_pool *pool) {
    qk_layer *layer;
    CHECK(qk_layer_new(&layer, &d->geometry, &choice, true) == QK_OK);
    for (int64_t at = 0; at < SAMPLES; at += batch) {
        const int64_t end = at + batch < SAMPLES ? at + batch : SAMPLES;
        const qk_tensor x = ref_slice(&d->x, at, end), y = ref_slice(&d->y, at, end);
        CHECK(qk_layer_feed(layer, &x, &y, pool) == QK_OK);
    }
    CHECK(qk_layer_flush(layer, pool) == QK_OK);
    return layer;
}

static moments taken(qk_layer *layer, qk_set set, qk_pool *pool) {
    moments m = moments_new(qk_layer_geometry(layer));
    CHECK(qk_layer_make_moments(layer, pool) == QK_OK);
    m.rows = qk_layer_rows(layer, set);
    CHECK(qk_layer_moments(layer, set, m.gram, m.cross, m.mean_x, m.mean_y, m.power) == QK_OK);
    return m;
}

static void check_close(const double *a, const double *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) CHECK_CLOSE(a[i], b[i], 1e-5); /* of the bytes one is summed as float32 */
}

static void check_same_moments(qk_layer *a, qk_layer *b, qk_pool *pool) {
    const qk_geometry *g = qk_layer_geometry(a);
    const int64_t K = g->inputs, inputs = g->groups * K, outputs = g->groups * g->outputs;
    for (int set = QK_FITTED; set <= QK_HELD_OUT; set++) {
        const moments m = taken(a, (qk_set)set, pool), n = taken(b, (qk_set)set, pool);
        CHECK(m.rows == n.rows && m.rows > 0);
        check_close(m.gram, n.gram, inputs * K);
        check_close(m.cross, n.cross, outputs * K);
        check_close(m.mean_x, n.mean_x, inputs);
        check_close(m.mean_y, n.mean_y, outputs);
        check_close(m.power, n.power, outputs);
        moments_free(m);
        moments_free(n);
    }
}

static const qk_row_choice held_out = {.samples = SAMPLES, .max_rows = 1000000, .holdout = 3, .seed = 1};

static qk_row_choice keeping(int64_t rows, bool thinned) {
    qk_row_choice choice = held_out;
    choice.kept = rows;
    choice.thinned = thinned;
    return choice;
}

static void rows_are_kept_as_they_are(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
            data d = data_of(i, (qk_dtype)dtype, 1);
            const qk_geometry *g = &d.geometry;
            qk_pool *pool = qk_pool_new(2);
            qk_row_choice choice = keeping(MANY, false);
            choice.holdout = 0;
            qk_layer *layer = fed(&d, choice, 5, pool);
            const qk_sums *s = layer->sets[QK_FITTED];
            const int64_t positions = ref_positions(g, &d.x), inputs = g->groups * g->inputs;
            const int64_t outputs = g->groups * g->outputs, n = SAMPLES * positions;
            CHECK(layer->keeps_rows && !s->gram && s->used == n && qk_layer_rows(layer, QK_FITTED) == n);
            float *rows = MEMORY(float, positions * inputs), *ys = MEMORY(float, positions * outputs);
            float *line = MEMORY(float, n);
            for (int64_t sample = 0; sample < SAMPLES; sample++) {
                ref_inputs(g, &d.x, sample, rows);
                ref_outputs(g, &d.y, sample, ys);
                for (int64_t k = 0; k < inputs; k++) {
                    qk_kept_line(layer, s, k, line);
                    for (int64_t p = 0; p < positions; p++) CHECK(line[sample * positions + p] == rows[p * inputs + k]);
                }
                for (int64_t o = 0; o < outputs; o++)
                    for (int64_t p = 0; p < positions; p++)
                        CHECK(s->y[o * s->capacity + sample * positions + p] == ys[p * outputs + o]);
            }
            free(rows);
            free(ys);
            free(line);
            qk_layer_free(layer);
            qk_pool_free(pool);
            data_free(&d);
        }
}

/* Made at the end, or in the middle, when there are more rows than are kept. */
static void moments_take_the_place_of_kept_rows(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_U8; dtype++)
            for (int kept = 0; kept < 2; kept++) {
                data d = data_of(i, (qk_dtype)dtype, 2);
                qk_pool *pool = qk_pool_new(2);
                qk_row_choice some = keeping(kept == 0 ? MANY : 40, false);
                if (kept == 1) some.samples = 6; /* so that the plan is to keep them, of some cases at least */
                qk_row_choice none = some;
                none.kept = 0;
                qk_layer *a = fed(&d, some, 5, pool), *b = fed(&d, none, 5, pool);
                check_same_moments(a, b, pool);
                qk_layer_free(a);
                qk_layer_free(b);
                qk_pool_free(pool);
                data_free(&d);
            }
}

static void of_too_many_rows_one_in_two_four_eight_are_kept(void) {
    for (int i = 0; i < REF_CASES; i++) {
        data d = data_of(i, QK_F32, 3);
        const qk_geometry *g = &d.geometry;
        const int64_t positions = ref_positions(g, &d.x), inputs = g->groups * g->inputs, n = SAMPLES * positions;
        float *rows = MEMORY(float, n * inputs), *line = MEMORY(float, n);
        for (int64_t sample = 0; sample < SAMPLES; sample++)
            ref_inputs(g, &d.x, sample, rows + sample * positions * inputs);
        const int64_t batches[] = {1, 5, SAMPLES};
        for (int run = 0; run < 3; run++) {
            qk_pool *pool = qk_pool_new(run + 1);
            qk_row_choice choice = keeping(48, true);
            choice.holdout = 0;
            qk_layer *layer = fed(&d, choice, batches[run], pool);
            const qk_sums *s = layer->sets[QK_FITTED];
            CHECK(layer->keeps_rows && s->offered == n && s->used <= 48);
            CHECK(n <= 48 ? s->used == n : s->used >= 24);
            for (int64_t k = 0; k < inputs; k++) {
                qk_kept_line(layer, s, k, line);
                for (int64_t row = 0; row < s->used; row++) CHECK(line[row] == rows[row * s->stride * inputs + k]);
            }
            qk_layer_free(layer);
            qk_pool_free(pool);
        }
        free(rows);
        free(line);
        data_free(&d);
    }
}

/* Kept by both, by one, by none; bytes and floats; a layer without data. */
static void joined_layers_have_the_rows_of_both(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int form = 0; form < 6; form++) {
            data d = data_of(i, form % 2 ? QK_U8 : QK_F32, 4), e = data_of(i, form % 3 ? QK_U8 : QK_F32, 5);
            qk_pool *pool = qk_pool_new(2);
            qk_layer *a = fed(&d, keeping(form == 3 ? 0 : MANY, false), 5, pool);
            qk_layer *b = fed(&e, keeping(form == 4 ? 0 : MANY, false), 5, pool);
            const bool both = form != 3 && form != 4;
            CHECK(qk_layer_join(a, b, pool) == QK_OK);
            CHECK(a->keeps_rows == both);
            qk_layer *c = fed(&d, held_out, 5, pool), *f = fed(&e, held_out, 5, pool);
            CHECK(qk_layer_join(c, f, pool) == QK_OK);
            check_same_moments(a, c, pool);
            qk_layer *layers[] = {a, b, c, f};
            for (int l = 0; l < 4; l++) qk_layer_free(layers[l]);
            qk_pool_free(pool);
            data_free(&d);
            data_free(&e);
        }
}

/* As many rows of each are kept as if one had seen all: none counts more than another. */
static void joined_layers_thin_out_alike(void) {
    data d = data_of(2, QK_F32, 6);
    qk_pool *pool = qk_pool_new(1);
    for (int swapped = 0; swapped < 2; swapped++) {
        qk_layer *a = fed(&d, keeping(swapped ? MANY : 20, true), 5, pool);
        qk_layer *b = fed(&d, keeping(swapped ? 20 : MANY, true), 5, pool);
        CHECK(qk_layer_join(a, b, pool) == QK_OK);
        const qk_sums *s = a->sets[QK_FITTED];
        const int64_t n = s->offered / 2;
        CHECK(s->stride > 1 && s->used == 2 * qk_ceil_div(n, s->stride));
        for (int64_t k = 0; k < d.geometry.inputs; k++)
            CHECK_SAME(s->x + k * s->capacity, s->x + k * s->capacity + s->used / 2, s->used / 2);
        qk_layer_free(a);
        qk_layer_free(b);
    }
    qk_pool_free(pool);
    data_free(&d);
}

static qk_status keep_and_join(void *context) {
    const data *d = context;
    qk_pool *pool = qk_pool_new(1);
    if (!pool) return QK_E_NOMEM;
    const qk_row_choice choices[] = {keeping(20, true), keeping(30, false)};
    qk_layer *layers[2] = {NULL, NULL};
    qk_status status = QK_OK;
    for (int i = 0; i < 2 && status == QK_OK; i++) {
        status = qk_layer_new(&layers[i], &d->geometry, &choices[i], true);
        if (status == QK_OK) status = qk_layer_feed(layers[i], &d->x, &d->y, pool);
    }
    if (status == QK_OK) status = qk_layer_join(layers[0], layers[1], pool);
    for (int i = 0; i < 2; i++) qk_layer_free(layers[i]);
    qk_pool_free(pool);
    return status;
}

static void a_layer_may_run_out_of_memory(void) {
    for (int dtype = QK_F32; dtype <= QK_U8; dtype++) {
        data d = data_of(2, (qk_dtype)dtype, 7);
        qk_refuse_each_allocation(keep_and_join, &d);
        data_free(&d);
    }
}

QK_TESTS(QK_TEST(rows_are_kept_as_they_are), QK_TEST(moments_take_the_place_of_kept_rows),
         QK_TEST(of_too_many_rows_one_in_two_four_eight_are_kept), QK_TEST(joined_layers_have_the_rows_of_both),
         QK_TEST(joined_layers_thin_out_alike), QK_TEST(a_layer_may_run_out_of_memory))
