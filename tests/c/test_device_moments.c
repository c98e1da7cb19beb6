/* Moments that are made on a device are those of the processor: of 8-bit inputs bit for bit, but for what is of the
 * target. */
#include "device_cases.h"
#include "moments/layer.h"
#include "reference.h"

enum { SAMPLES = 5 };

typedef struct {
    double *gram, *cross, *mean_x, *mean_y, *power;
    int64_t rows[2], inputs, outputs, K;
} moments;

static void read_set(const qk_layer *layer, qk_set set, moments *m) {
    const qk_geometry *g = qk_layer_geometry(layer);
    *m = (moments){.inputs = g->groups * g->inputs, .outputs = g->groups * g->outputs, .K = g->inputs};
    m->gram = MEMORY(double, m->inputs * m->K);
    m->cross = MEMORY(double, m->outputs * m->K);
    m->mean_x = MEMORY(double, m->inputs);
    m->mean_y = MEMORY(double, m->outputs);
    m->power = MEMORY(double, m->outputs);
    CHECK(qk_layer_moments(layer, set, m->gram, m->cross, m->mean_x, m->mean_y, m->power) == QK_OK);
}

static void moments_free(moments *m) {
    double *arrays[] = {m->gram, m->cross, m->mean_x, m->mean_y, m->power};
    for (int i = 0; i < 5; i++) free(arrays[i]);
}

static double apart(const double *a, const double *b, int64_t n) {
    double most = 0, difference = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs(b[i]));
        difference = fmax(difference, fabs(a[i] - b[i]));
    }
    return difference / fmax(most, 1e-30);
}

static void check_same_moments(const qk_layer *have, const qk_layer *want, bool exact) {
    for (int set = 0; set < 2; set++) {
        moments a, b;
        CHECK(qk_layer_rows(have, (qk_set)set) == qk_layer_rows(want, (qk_set)set));
        read_set(have, (qk_set)set, &a);
        read_set(want, (qk_set)set, &b);
        const double near = exact ? 0 : 3e-7;
        CHECK(apart(a.gram, b.gram, a.inputs * a.K) <= near);
        CHECK(apart(a.mean_x, b.mean_x, a.inputs) <= (exact ? 0 : 1e-12));
        CHECK(apart(a.cross, b.cross, a.outputs * a.K) <= 3e-7);
        CHECK(apart(a.mean_y, b.mean_y, a.outputs) <= 1e-12);
        CHECK(apart(a.power, b.power, a.outputs) <= 1e-12);
        moments_free(&a);
        moments_free(&b);
    }
}

typedef struct {
    const ref_case *of;
    qk_tensor x, y;
    qk_pool *pool;
} data;

static data data_of(const ref_case *c, qk_dtype dtype) {
    qk_random random = {(uint64_t)dtype + 7};
    int64_t dims[QK_MAX_DIMS];
    memcpy(dims, c->x_dims, sizeof dims);
    dims[0] = SAMPLES;
    data d = {.of = c, .pool = qk_pool_new(1)};
    d.x = ref_tensor(&random, dtype, c->x_ndim, dims);
    d.y = ref_target(&random, &c->geometry, &d.x);
    return d;
}

static void data_free(data *d) {
    ref_free(&d->x);
    ref_free(&d->y);
    qk_pool_free(d->pool);
}

static qk_layer *layer_of(const data *d, bool with_target, int64_t max_rows, qk_device *device) {
    const qk_row_choice choice = {.samples = SAMPLES, .max_rows = max_rows, .holdout = 2, .seed = 3};
    qk_layer *layer;
    CHECK(qk_layer_new(&layer, &d->of->geometry, &choice, with_target) == QK_OK);
    if (device) qk_layer_use_device(layer, device);
    return layer;
}

/* In batches of 1, 2 and 2 samples, the second of which has another scale where `mixed`; flushed in between. */
static qk_status feed(qk_layer *layer, const data *d, bool with_target, bool mixed) {
    for (int i = 0; i < 3; i++) {
        const int first = i == 0 ? 0 : 2 * i - 1, end = 2 * i + 1;
        qk_tensor x = ref_slice(&d->x, first, end), y = ref_slice(&d->y, first, end);
        if (mixed && i == 1) x.affine.scale *= 2;
        const qk_status status = qk_layer_feed(layer, &x, with_target ? &y : NULL, d->pool);
        if (status != QK_OK) return status;
        if (i == 0) CHECK(qk_layer_flush(layer, d->pool) == QK_OK);
    }
    return qk_layer_flush(layer, d->pool);
}

static void every_geometry_gives_the_same_moments(void) {
    qk_device *device = device_new(0);
    if (!device) return;
    int there = 0;
    for (int i = 0; i < REF_CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
            data d = data_of(&ref_cases[i], (qk_dtype)dtype);
            const bool with_target = (i + dtype) % 3 != 0;
            qk_layer *have = layer_of(&d, with_target, 1 << 20, device),
                     *want = layer_of(&d, with_target, 1 << 20, NULL);
            CHECK(feed(have, &d, with_target, false) == QK_OK);
            CHECK(feed(want, &d, with_target, false) == QK_OK);
            CHECK(qk_layer_device_use(want) == QK_NO_DEVICE);
            const qk_device_use use = qk_layer_device_use(have);
            CHECK(use == (have->phases.count > 1 ? QK_DEVICE_HAS_NO_PHASES : QK_ON_DEVICE));
            there += use == QK_ON_DEVICE;
            if (with_target) check_same_moments(have, want, dtype != QK_F32);
            qk_layer_free(have);
            qk_layer_free(want);
            data_free(&d);
        }
    CHECK(there > REF_CASES);
    qk_device_close(device);
}

static void chosen_rows_and_mixed_scales_give_the_same_moments(void) {
    qk_device *device = device_new(0);
    if (!device) return;
    for (int kind = 0; kind < 3; kind++) {
        data d = data_of(&ref_cases[5], QK_I8);
        const int64_t rows = kind == 0 ? 100 : 1 << 20;
        qk_layer *have = layer_of(&d, true, rows, device), *want = layer_of(&d, true, rows, NULL);
        CHECK(feed(have, &d, true, kind == 1) == QK_OK);
        CHECK(feed(want, &d, true, kind == 1) == QK_OK);
        if (kind == 2) { /* the moments of both are added up */
            qk_layer *more = layer_of(&d, true, rows, device), *others = layer_of(&d, true, rows, NULL);
            CHECK(feed(more, &d, true, false) == QK_OK);
            CHECK(feed(others, &d, true, false) == QK_OK);
            CHECK(qk_layer_join(have, more, d.pool) == QK_OK);
            CHECK(qk_layer_join(want, others, d.pool) == QK_OK);
            qk_layer_free(more);
            qk_layer_free(others);
        }
        check_same_moments(have, want, kind == 0);
        qk_layer_free(have);
        qk_layer_free(want);
        data_free(&d);
    }
    qk_device_close(device);
}

/* The processor goes on from where the device could not, and nothing is lost or counted twice. */
static void a_full_device_leaves_the_rest_to_the_processor(void) {
    qk_device *first = device_new(0);
    if (!first) return;
    qk_device_close(first);
    data d = data_of(&ref_cases[5], QK_U8);
    qk_layer *want = layer_of(&d, true, 1 << 20, NULL);
    CHECK(feed(want, &d, true, false) == QK_OK);
    int refused = 0, used = 0;
    for (int64_t most = 100; most < 1 << 22; most += most / 8) {
        qk_device *device = device_new(most);
        qk_layer *have = layer_of(&d, true, 1 << 20, device);
        CHECK(feed(have, &d, true, false) == QK_OK);
        check_same_moments(have, want, true);
        refused += qk_layer_device_use(have) == QK_DEVICE_IS_FULL;
        used += qk_layer_device_use(have) == QK_ON_DEVICE;
        qk_layer_free(have);
        qk_device_close(device);
    }
    CHECK(refused > 10 && used > 3);
    qk_layer_free(want);
    data_free(&d);
}

static void few_rows_are_kept_by_the_processor(void) {
    qk_device *device = device_new(0);
    if (!device) return;
    data d = data_of(&ref_cases[2], QK_F32);
    const qk_row_choice choice = {.samples = SAMPLES, .max_rows = 1 << 20, .holdout = 2, .seed = 3, .kept = 1000};
    qk_layer *layer;
    CHECK(qk_layer_new(&layer, &d.of->geometry, &choice, true) == QK_OK);
    qk_layer_use_device(layer, device);
    CHECK(feed(layer, &d, true, false) == QK_OK);
    CHECK(qk_layer_device_use(layer) == QK_DEVICE_HAS_NO_ROWS);
    CHECK(qk_layer_make_moments(layer, d.pool) == QK_OK);
    qk_layer *want = layer_of(&d, true, 1 << 20, NULL);
    CHECK(feed(want, &d, true, false) == QK_OK);
    check_same_moments(layer, want, false);
    qk_layer_free(layer);
    qk_layer_free(want);
    data_free(&d);
    qk_device_close(device);
}

static void a_lost_device_is_an_error(void) {
    qk_device *device = device_new(0);
    if (!device) return;
    data d = data_of(&ref_cases[5], QK_U8);
    qk_layer *layer = layer_of(&d, true, 1 << 20, device);
    const qk_tensor x = ref_slice(&d.x, 0, 2), y = ref_slice(&d.y, 0, 2);
    CHECK(qk_layer_feed(layer, &x, &y, d.pool) == QK_OK);
    qk_device_lose(device, "its cable was pulled");
    CHECK(qk_layer_feed(layer, &x, &y, d.pool) == QK_E_DEVICE);
    CHECK(qk_layer_feed(layer, &x, &y, d.pool) == QK_E_DEVICE);
    qk_layer_free(layer);
    data_free(&d);
    qk_device_close(device);
}

QK_TESTS(QK_TEST(every_geometry_gives_the_same_moments), QK_TEST(chosen_rows_and_mixed_scales_give_the_same_moments),
         QK_TEST(a_full_device_leaves_the_rest_to_the_processor), QK_TEST(few_rows_are_kept_by_the_processor),
         QK_TEST(a_lost_device_is_an_error))
