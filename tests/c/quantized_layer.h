/* A quantized layer and its data, for the tests of what finds its integers. */
#ifndef QK_QUANTIZED_LAYER_H
#define QK_QUANTIZED_LAYER_H

#include "reference.h"

/* A layer whose target is a random float layer plus noise, and its quantized start: weights rounded to nearest on a
 * coarse grid, an integer bias. */
typedef struct {
    qk_geometry geometry;
    qk_row_choice choice;   /* of layer */
    qk_layer *layer;        /* of least squares */
    qk_training_data *data; /* of the gradient loops */
    qk_pool *pool;
    qk_tensor x, y;
    float *weight, *weight_scale, *bias, *bias_scale;
    int32_t *weight_q, *weight_zp;
    qk_quantized_layer start;
    /* the result's memory */
    int32_t *new_weight, *new_bias;
} fixture;

static inline int64_t rows_of(const fixture *f) { return f->geometry.groups * f->geometry.outputs; }

/* The float layer's output, with noise if there is a stream for it. */
static inline void set_target(fixture *f, qk_random *noise) {
    const qk_geometry *g = &f->geometry;
    const int64_t K = g->inputs, rows = rows_of(f), inputs = g->groups * K, positions = ref_positions(g, &f->x);
    float *xs = MEMORY(float, positions * inputs), *y = (float *)f->y.data;
    for (int64_t sample = 0; sample < f->x.dims[0]; sample++) {
        ref_inputs(g, &f->x, sample, xs);
        for (int64_t p = 0; p < positions; p++)
            for (int64_t o = 0; o < rows; o++) {
                double sum = f->bias[o] + (noise ? qk_uniform(noise, -0.05, 0.05) : 0);
                for (int64_t k = 0; k < K; k++)
                    sum += (double)f->weight[o * K + k] * xs[p * inputs + o / g->outputs * K + k];
                y[sample * positions * rows + (g->spatial ? o * positions + p : p * rows + o)] = (float)sum;
            }
    }
    free(xs);
}

/* It has the data of `samples` samples; neither `layer` nor `data` holds any yet. */
static inline fixture fixture_of(const ref_case *c, int64_t samples, uint64_t seed, int threads) {
    const qk_geometry *g = &c->geometry;
    const int64_t rows = g->groups * g->outputs, K = g->inputs;
    qk_random r = {seed};
    int64_t dims[QK_MAX_DIMS];
    memcpy(dims, c->x_dims, sizeof dims);
    dims[0] = samples;
    fixture f = {.geometry = *g,
                 .pool = qk_pool_new(threads),
                 .x = ref_tensor(&r, QK_F32, c->x_ndim, dims),
                 .weight = qk_floats(&r, rows * K, -1, 1),
                 .weight_scale = MEMORY(float, rows),
                 .weight_zp = MEMORY(int32_t, rows),
                 .weight_q = MEMORY(int32_t, rows * K),
                 .bias = qk_floats(&r, rows, -1, 1),
                 .bias_scale = MEMORY(float, rows),
                 .new_weight = MEMORY(int32_t, rows * K),
                 .new_bias = MEMORY(int32_t, rows)};
    f.y = ref_target(&r, g, &f.x);
    for (int64_t o = 0; o < rows; o++) { /* a quantized bias is on its grid */
        f.bias_scale[o] = 0.001f;
        f.bias[o] = f.bias_scale[o] * rintf(f.bias[o] / f.bias_scale[o]);
    }
    set_target(&f, &r);
    for (int64_t o = 0; o < rows; o++) {
        f.weight_scale[o] = 0.12f + 0.01f * (float)(o % 5);
        f.weight_zp[o] = (int32_t)(o % 3) - 1;
        for (int64_t i = o * K; i < (o + 1) * K; i++) {
            f.weight_q[i] = (int32_t)rintf(f.weight[i] / f.weight_scale[o]) + f.weight_zp[o];
            if (f.weight_q[i] > 7) f.weight_q[i] = 7;
            if (f.weight_q[i] < -8) f.weight_q[i] = -8;
        }
    }
    f.start = (qk_quantized_layer){.weight = f.weight,
                                   .weight_q = f.weight_q,
                                   .weight_scale = f.weight_scale,
                                   .weight_zp = f.weight_zp,
                                   .qmin = -8,
                                   .qmax = 7,
                                   .bias = f.bias,
                                   .bias_scale = f.bias_scale,
                                   .bias_qmin = -30000,
                                   .bias_qmax = 30000};
    return f;
}

static inline void fixture_free(fixture *f) {
    qk_layer_free(f->layer);
    qk_training_data_free(f->data);
    qk_pool_free(f->pool);
    ref_free(&f->x);
    ref_free(&f->y);
    void *arrays[] = {f->weight,   f->weight_scale, f->bias,       f->bias_scale,
                      f->weight_q, f->weight_zp,    f->new_weight, f->new_bias};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

#endif
