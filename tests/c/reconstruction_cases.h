/* Layers with samples, for the tests of their loss and its gradient. */
#ifndef QK_RECONSTRUCTION_CASES_H
#define QK_RECONSTRUCTION_CASES_H

#include "base/blas.h"
#include "loss/reconstruction.h"
#include "reference.h"

/* Units of several samples are in reference.h; here are units that are pieces of one sample, and a remainder. */
static const ref_case larger[] = {
    {"one unit", {.groups = 1, .inputs = 4, .outputs = 3}, 3, {3, 512, 4}},
    {"two pieces", {.groups = 1, .inputs = 4, .outputs = 3}, 3, {3, 513, 4}},
    {"1-D, three pieces", {1, QK_PAD_EXPLICIT, 2, 3, 6, {3}, {1}, {2}, {2}, {2}}, 3, {3, 4, 1100}},
    {"depthwise, pieces", {2, QK_PAD_EXPLICIT, 3, 1, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {3, 3, 30, 37}},
};
enum { LARGER = sizeof larger / sizeof *larger, CASES = REF_CASES + LARGER };

static inline const ref_case *case_of(int i) { return i < REF_CASES ? &ref_cases[i] : &larger[i - REF_CASES]; }

/* A layer's data in batches of one and of several samples, and any weight and bias. */
typedef struct {
    const qk_geometry *geometry;
    qk_training_data *data;
    qk_pool *pool;
    qk_tensor x, y;
    float *weight, *bias;
    int64_t rows, K, inputs, positions;
} fixture;

/* stage may be NULL. */
static inline fixture fixture_new(const ref_case *c, qk_dtype dtype, const qk_output_stage *stage, int threads) {
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
    CHECK(qk_training_data_new(&f.data, g, stage, 0) == QK_OK);
    const qk_tensor x[] = {ref_slice(&f.x, 0, 1), ref_slice(&f.x, 1, dims[0])};
    const qk_tensor y[] = {ref_slice(&f.y, 0, 1), ref_slice(&f.y, 1, dims[0])};
    for (int i = 0; i < 2; i++) CHECK(qk_training_data_add(f.data, &x[i], NULL, &y[i]) == QK_OK);
    return f;
}

static inline void fixture_free(fixture *f) {
    qk_training_data_free(f->data);
    qk_pool_free(f->pool);
    ref_free(&f->x);
    ref_free(&f->y);
    free(f->weight);
    free(f->bias);
}

static inline qk_reconstruction_result result_new(const fixture *f) {
    return (qk_reconstruction_result){.row_loss = MEMORY(double, f->rows),
                                      .gradient = MEMORY(float, f->rows * f->K),
                                      .slope = MEMORY(float, f->rows),
                                      .mean_power = MEMORY(double, f->inputs),
                                      .target_power = MEMORY(double, 1),
                                      .slope_power = MEMORY(double, f->rows)};
}

static inline void result_free(qk_reconstruction_result *r) {
    free(r->row_loss);
    free(r->gradient);
    free(r->slope);
    free(r->mean_power);
    free(r->target_power);
    free(r->slope_power);
}

static inline void reconstruct(const fixture *f, const float *bias, const int64_t *samples, int64_t count,
                               qk_reconstruction_result *result) {
    qk_reconstruction r;
    qk_blas_enter();
    CHECK(qk_reconstruction_init(&r, f->data, f->data->count, f->data->count, f->pool) == QK_OK);
    qk_reconstruct(&r, f->weight, bias, samples, count, result);
    qk_reconstruction_destroy(&r);
    qk_blas_leave();
}

/* All samples from the last to the first, so that their order is not their place in memory. */
static inline int64_t *backwards(const fixture *f) {
    int64_t *samples = MEMORY(int64_t, f->data->count);
    for (int64_t s = 0; s < f->data->count; s++) samples[s] = f->data->count - 1 - s;
    return samples;
}

/* Every wanted number of both, bit for bit. */
static inline void check_same_result(const fixture *f, const qk_reconstruction_result *a,
                                     const qk_reconstruction_result *b) {
    CHECK_SAME(&a->loss, &b->loss, 1);
    if (b->row_loss) CHECK_SAME(a->row_loss, b->row_loss, f->rows);
    if (b->gradient) CHECK_SAME(a->gradient, b->gradient, f->rows * f->K);
    if (b->slope) CHECK_SAME(a->slope, b->slope, f->rows);
    if (b->mean_power) CHECK_SAME(a->mean_power, b->mean_power, f->inputs);
    if (b->target_power) CHECK_SAME(a->target_power, b->target_power, 1);
    if (b->slope_power) CHECK_SAME(a->slope_power, b->slope_power, f->rows);
}

#endif
