/* What a layer is safe from: several readers, and absurd sizes. */
#include "moments.h"
#include "reference.h"

typedef struct {
    const qk_layer *layer;
    moments expected;
    int64_t wrong;
} reader;

static void *read_for_a_while(void *context) {
    reader *r = context;
    const qk_geometry *g = qk_layer_geometry(r->layer);
    const moments m = moments_new(g);
    for (int i = 0; i < 50; i++) {
        CHECK(qk_layer_moments(r->layer, QK_FITTED, m.gram, m.cross, m.mean_x, m.mean_y, m.power) == QK_OK);
        r->wrong += memcmp(m.gram, r->expected.gram, (size_t)(g->groups * g->inputs * g->inputs) * sizeof(double)) != 0;
    }
    moments_free(m);
    return NULL;
}

/* A layer that is const holds nothing that reading it writes. */
static void threads_may_read_a_layer_together(void) {
    for (int i = 0; i < REF_CASES; i++) {
        const qk_geometry *g = &ref_cases[i].geometry;
        qk_random r = {(uint64_t)i};
        qk_tensor x = ref_tensor(&r, i % 2 ? QK_U8 : QK_F32, ref_cases[i].x_ndim, ref_cases[i].x_dims);
        qk_tensor y = ref_target(&r, g, &x);
        const qk_row_choice all = {.samples = x.dims[0], .max_rows = 1000000, .seed = 1};
        qk_pool *pool = qk_pool_new(1);
        qk_layer *layer;
        CHECK(qk_layer_new(&layer, g, &all, true) == QK_OK);
        CHECK(qk_layer_feed(layer, &x, &y, pool) == QK_OK && qk_layer_flush(layer, pool) == QK_OK);
        reader readers[2] = {{.layer = layer, .expected = moments_new(g)}};
        const moments *m = &readers[0].expected;
        CHECK(qk_layer_moments(layer, QK_FITTED, m->gram, m->cross, m->mean_x, m->mean_y, m->power) == QK_OK);
        readers[1] = readers[0];
        pthread_t threads[2];
        for (int t = 0; t < 2; t++) CHECK(pthread_create(&threads[t], NULL, read_for_a_while, &readers[t]) == 0);
        for (int t = 0; t < 2; t++) CHECK(pthread_join(threads[t], NULL) == 0);
        CHECK(readers[0].wrong == 0 && readers[1].wrong == 0);
        moments_free(readers[0].expected);
        qk_layer_free(layer);
        qk_pool_free(pool);
        ref_free(&y);
        ref_free(&x);
    }
}

static void sizes_beyond_any_memory_are_refused(void) {
    const int64_t huge = INT32_MAX;
    const struct {
        qk_geometry g;
        qk_status status;
    } cases[] = {
        {{.groups = 1, .inputs = huge + 1, .outputs = 1}, QK_E_ARG},
        {{.groups = 1, .inputs = INT64_MAX, .outputs = INT64_MAX}, QK_E_ARG},
        {{.groups = 1, .inputs = huge, .outputs = 1}, QK_E_NOMEM},
        {{.groups = 1, .inputs = huge, .outputs = huge}, QK_E_NOMEM},
        {{1, QK_PAD_EXPLICIT, huge, huge, huge, {1}, {1}, {1}}, QK_E_NOMEM},
        {{1, QK_PAD_EXPLICIT, INT64_C(1) << 32, INT64_C(1) << 32, 1, {1}, {1}, {1}}, QK_E_ARG},
        {{2, QK_PAD_EXPLICIT, 1, 1, INT64_C(1) << 30, {1 << 15, 1 << 15}, {1 << 15, 1 << 15}, {1, 1}, {0}, {0}, true},
         QK_E_NOMEM},
        {{1, QK_PAD_EXPLICIT, 1, 1, 1, {1}, {1}, {1}, {0}, {huge + 1}}, QK_E_ARG},
    };
    const qk_row_choice all = {.samples = 1, .max_rows = 1};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qk_layer *layer;
        CHECK(qk_layer_new(&layer, &cases[i].g, &all, true) == cases[i].status);
        CHECK(layer == NULL);
    }
}

/* 65536 phases of one tap: a tap is not looked for among all others. */
static void a_huge_kernel_is_cut_into_phases_at_once(void) {
    const qk_geometry g = {2, QK_PAD_EXPLICIT, 1, 1, 1 << 16, {256, 256}, {256, 256}, {1, 1}, {0}, {0}, true};
    const qk_row_choice all = {.samples = 1, .max_rows = 1};
    qk_layer *layer;
    alarm(100); /* it took minutes, and takes a moment */
    CHECK(qk_layer_new(&layer, &g, &all, false) == QK_OK);
    alarm(0);
    qk_layer_free(layer);
}

QK_TESTS(QK_TEST(threads_may_read_a_layer_together), QK_TEST(sizes_beyond_any_memory_are_refused),
         QK_TEST(a_huge_kernel_is_cut_into_phases_at_once))
