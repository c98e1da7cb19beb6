/* What stands between a layer's output and the loss, by its definition, in float64. */
#ifndef QK_STAGE_REFERENCE_H
#define QK_STAGE_REFERENCE_H

#include "qk.h"
#include "qk_test.h"

/* As ONNX has them, of one value. */
static inline double ref_activation(const qk_activation *f, double x) {
    switch (f->kind) {
    case QK_CLIP: return fmin(fmax(x, f->a), f->b);
    case QK_LEAKY_RELU: return x < 0 ? f->a * x : x;
    case QK_SIGMOID: return 1 / (1 + exp(-x));
    case QK_TANH: return tanh(x);
    case QK_GELU: return 0.5 * x * erfc(-x / sqrt(2));
    case QK_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case QK_HARD_SIGMOID: return fmin(fmax(f->a * x + f->b, 0), 1);
    case QK_HARD_SWISH: return x * fmin(fmax(x / 6 + 0.5, 0), 1);
    case QK_SILU: return x / (1 + exp(-x));
    case QK_NO_ACTIVATION:
    case QK_SOFTMAX: break;
    }
    return x;
}

static inline double ref_slope(const qk_activation *f, double x) {
    const double step = 1e-6;
    return (ref_activation(f, x + step) - ref_activation(f, x - step)) / (2 * step);
}

/* Where the derivative jumps. Returns how many there are. */
static inline int ref_kinks(const qk_activation *f, double kinks[2]) {
    switch (f->kind) {
    case QK_CLIP: kinks[0] = f->a, kinks[1] = f->b; return 2;
    case QK_LEAKY_RELU: kinks[0] = 0; return 1;
    case QK_HARD_SIGMOID: kinks[0] = -f->b / f->a, kinks[1] = (1 - f->b) / f->a; return 2;
    case QK_HARD_SWISH: kinks[0] = -3, kinks[1] = 3; return 2;
    default: return 0;
    }
}

static inline double ref_integer(const qk_output_stage *s, double value) {
    return nearbyint(value / s->affine.scale) + s->affine.zero_point;
}

static inline double ref_rounded(const qk_output_stage *s, double value) {
    if (!s->quantized) return value;
    return (fmin(fmax(ref_integer(s, value), s->grid.qmin), s->grid.qmax) - s->affine.zero_point) * s->affine.scale;
}

/* The derivative of that, passed straight through. */
static inline double ref_inside(const qk_output_stage *s, double value) {
    const double q = ref_integer(s, value);
    return !s->quantized || (q >= s->grid.qmin && q <= s->grid.qmax);
}

/* One value of output `row`, of any stage but softmax. */
typedef struct {
    double target, error, slope;
} ref_judged;

static inline ref_judged ref_judge(const qk_output_stage *s, int64_t row, double z, double y) {
    qk_activation f = s->activation;
    if (s->slopes) f.a = s->slopes[row];
    const double value = s->folded ? z : ref_activation(&f, z), target = ref_activation(&f, y);
    return (ref_judged){target, ref_rounded(s, value) - target,
                        ref_inside(s, value) * (s->folded ? 1 : ref_slope(&f, z))};
}

/* Softmax along an axis of one sample of shape (1, dims[1], ..). */
static inline void ref_softmax(double *to, const double *x, const qk_tensor *shape, int axis) {
    int64_t count = 1, inner = 1;
    for (int i = 1; i < shape->ndim; i++) count *= shape->dims[i];
    for (int i = axis + 1; i < shape->ndim; i++) inner *= shape->dims[i];
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = i - i / inner % shape->dims[axis] * inner;
        double sum = 0;
        for (int64_t j = 0; j < shape->dims[axis]; j++) sum += exp(x[first + j * inner] - x[i]);
        to[i] = 1 / sum;
    }
}

/* All outputs of one sample, in the order of y. pulled: half the derivative of the sum of squares of `error` by z;
 * power: for each z the sum over all values of their squared derivatives by it. */
static inline void ref_softmax_stage(const qk_output_stage *s, const qk_tensor *shape, const double *z, const double *y,
                                     double *target, double *error, double *pulled, double *power) {
    int64_t count = 1, inner = 1;
    for (int i = 1; i < shape->ndim; i++) count *= shape->dims[i];
    for (int i = s->axis + 1; i < shape->ndim; i++) inner *= shape->dims[i];
    double *p = MEMORY(double, count);
    ref_softmax(p, z, shape, s->axis);
    ref_softmax(target, y, shape, s->axis);
    for (int64_t i = 0; i < count; i++) error[i] = ref_rounded(s, p[i]) - target[i];
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = i - i / inner % shape->dims[s->axis] * inner;
        pulled[i] = power[i] = 0;
        for (int64_t n = 0; n < shape->dims[s->axis]; n++) {
            const int64_t j = first + n * inner;
            const double by_z = ref_inside(s, p[j]) * p[j] * ((i == j) - p[i]);
            pulled[i] += error[j] * by_z;
            power[i] += by_z * by_z;
        }
    }
    free(p);
}

/* Every activation but softmax. */
static const qk_activation ref_activations[] = {
    {QK_NO_ACTIVATION, 0, 0},  {QK_CLIP, 0, INFINITY},
    {QK_CLIP, -0.75f, 1.5f},   {QK_LEAKY_RELU, 0.1f, 0},
    {QK_LEAKY_RELU, -0.5f, 0}, {QK_SIGMOID, 0, 0},
    {QK_TANH, 0, 0},           {QK_GELU, 0, 0},
    {QK_GELU_TANH, 0, 0},      {QK_HARD_SIGMOID, 0.2f, 0.5f},
    {QK_HARD_SWISH, 0, 0},     {QK_SILU, 0, 0},
};
enum { REF_ACTIVATIONS = sizeof ref_activations / sizeof *ref_activations };

#endif
