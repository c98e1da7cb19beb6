/* A layer's rows, cut out of a batch the slow and obvious way. */
#ifndef QK_REFERENCE_H
#define QK_REFERENCE_H

#include "qk.h"
#include "qk_test.h"

/* One axis as ONNX's Conv or ConvTranspose describes it. Of a ConvTranspose pad is cut off its outputs. */
typedef struct {
    int64_t in, kernel, stride, dilation, pad, out; /* pad: at the beginning */
    bool transposed;
} ref_axis;

static inline void ref_transposed_size(ref_axis *a, const qk_geometry *g, int axis) {
    const bool upper = g->auto_pad == QK_PAD_SAME_UPPER, same = upper || g->auto_pad == QK_PAD_SAME_LOWER;
    int64_t begin = 0, end = 0;
    a->out = a->stride * (a->in - 1) + g->output_padding[axis] + ((a->kernel - 1) * a->dilation + 1);
    if (g->output_shape[axis] || same) {
        /* total_padding is what makes the outputs as many as wanted; halved, the odd one at the named end */
        const int64_t wanted = g->output_shape[axis] ? g->output_shape[axis] : a->in * a->stride;
        for (int64_t total = 0; total < a->out - wanted; total++) *((total % 2 == 0) == upper ? &end : &begin) += 1;
        if (g->output_shape[axis]) a->out = wanted + begin + end;
    } else if (g->auto_pad == QK_PAD_EXPLICIT) {
        begin = g->pad_begin[axis];
        end = g->pad_end[axis];
    }
    a->out -= begin + end;
    a->pad = begin;
}

static inline ref_axis ref_axis_of(const qk_geometry *g, int axis, int64_t in) {
    ref_axis a = {in, g->kernel[axis], g->stride[axis], g->dilation[axis], 0, 0, g->transposed};
    const int64_t window = (a.kernel - 1) * a.dilation + 1;
    if (g->transposed) {
        ref_transposed_size(&a, g, axis);
        return a;
    }
    int64_t total = 0;
    switch (g->auto_pad) {
    case QK_PAD_EXPLICIT:
        total = g->pad_begin[axis] + g->pad_end[axis];
        a.pad = g->pad_begin[axis];
        break;
    case QK_PAD_VALID: break;
    case QK_PAD_SAME_UPPER:
    case QK_PAD_SAME_LOWER:
        /* output_shape = ceil(input_shape / stride); what is needed is split in two, the odd one at the named end */
        a.out = (int64_t)ceil((double)in / (double)a.stride);
        total = (a.out - 1) * a.stride + window - in;
        if (total < 0) total = 0;
        a.pad = (int64_t)(g->auto_pad == QK_PAD_SAME_UPPER ? floor((double)total / 2) : ceil((double)total / 2));
        return a;
    }
    while (a.out * a.stride + window <= in + total) a.out++; /* as many windows as fit */
    return a;
}

/* The input that a tap of an output sees, -1 for padding. A ConvTranspose puts input i, times its taps, from output
 * i * stride - pad on. */
static inline int64_t ref_input(const ref_axis *a, int64_t out, int64_t tap) {
    if (!a->transposed) {
        const int64_t in = out * a->stride + tap * a->dilation - a->pad;
        return in < a->in ? in : -1;
    }
    for (int64_t in = 0; in < a->in; in++)
        if (in * a->stride - a->pad + tap * a->dilation == out) return in;
    return -1;
}

static inline int64_t ref_elements(const qk_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dims[i];
    return n;
}

static inline float ref_value(const qk_tensor *t, int64_t i) {
    switch (t->dtype) {
    case QK_U8: return (float)(((const uint8_t *)t->data)[i] - t->affine.zero_point) * t->affine.scale;
    case QK_I8: return (float)(((const int8_t *)t->data)[i] - t->affine.zero_point) * t->affine.scale;
    case QK_F32: break;
    }
    return ((const float *)t->data)[i];
}

/* Output positions of one sample. */
static inline int64_t ref_positions(const qk_geometry *g, const qk_tensor *x) {
    int64_t n = 1;
    if (g->spatial == 0)
        for (int i = 1; i < x->ndim - 1; i++) n *= x->dims[i];
    for (int i = 0; i < g->spatial; i++) n *= ref_axis_of(g, i, x->dims[i + 2]).out;
    return n;
}

/* The inputs of every position of one sample: rows (positions, groups * K). */
static inline void ref_inputs(const qk_geometry *g, const qk_tensor *x, int64_t sample, float *rows) {
    const int64_t per_sample = ref_elements(x) / x->dims[0];
    if (g->spatial == 0) {
        for (int64_t i = 0; i < per_sample; i++) rows[i] = ref_value(x, sample * per_sample + i);
        return;
    }
    const ref_axis absent = {1, 1, 1, 1, 0, 1, false};
    ref_axis axes[3] = {absent, absent, absent}; /* absent ones lead */
    for (int i = 0; i < g->spatial; i++) axes[3 - g->spatial + i] = ref_axis_of(g, i, x->dims[i + 2]);
    const ref_axis *a = axes, *b = axes + 1, *c = axes + 2;
    for (int64_t oa = 0; oa < a->out; oa++)
        for (int64_t ob = 0; ob < b->out; ob++)
            for (int64_t oc = 0; oc < c->out; oc++)
                for (int64_t channel = 0; channel < x->dims[1]; channel++)
                    for (int64_t ka = 0; ka < a->kernel; ka++)
                        for (int64_t kb = 0; kb < b->kernel; kb++)
                            for (int64_t kc = 0; kc < c->kernel; kc++) {
                                const int64_t ia = ref_input(a, oa, ka), ib = ref_input(b, ob, kb);
                                const int64_t ic = ref_input(c, oc, kc);
                                const bool inside = ia >= 0 && ib >= 0 && ic >= 0;
                                const int64_t at = ((channel * a->in + ia) * b->in + ib) * c->in + ic;
                                *rows++ = inside ? ref_value(x, sample * per_sample + at) : 0.0f;
                            }
}

/* The outputs of every position of one sample: rows (positions, groups * O). */
static inline void ref_outputs(const qk_geometry *g, const qk_tensor *y, int64_t sample, float *rows) {
    const int64_t n = g->groups * g->outputs, per_sample = ref_elements(y) / y->dims[0], positions = per_sample / n;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t o = 0; o < n; o++)
            rows[p * n + o] = ref_value(y, sample * per_sample + (g->spatial ? o * positions + p : p * n + o));
}

/* ---- batches for tests ----------------------------------------------------------------------- */

/* A geometry and the shape of its input. */
typedef struct {
    const char *name;
    qk_geometry geometry;
    int x_ndim;
    int64_t x_dims[QK_MAX_DIMS];
} ref_case;

static const ref_case ref_cases[] = {
    {"matrix", {.groups = 1, .inputs = 7, .outputs = 3}, 2, {6, 7}},
    {"matrices", {.groups = 1, .inputs = 5, .outputs = 4}, 4, {4, 3, 50, 5}},
    {"wide matrix", {.groups = 1, .inputs = 150, .outputs = 140}, 3, {3, 40, 150}},
    {"1-D", {1, QK_PAD_EXPLICIT, 1, 4, 6, {3}, {2}, {2}, {1}, {3}}, 3, {5, 2, 37}},
    {"pointwise", {2, QK_PAD_EXPLICIT, 1, 5, 8, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {0, 0}}, 4, {5, 8, 9, 11}},
    {"3x3 padded", {2, QK_PAD_EXPLICIT, 1, 5, 27, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {4, 3, 12, 20}},
    {"strided", {2, QK_PAD_EXPLICIT, 1, 2, 30, {3, 5}, {2, 3}, {1, 1}, {0, 2}, {2, 1}}, 4, {3, 2, 15, 24}},
    {"dilated", {2, QK_PAD_EXPLICIT, 1, 2, 12, {3, 2}, {1, 2}, {2, 4}, {3, 0}, {2, 4}}, 4, {3, 2, 14, 18}},
    {"same upper", {2, QK_PAD_SAME_UPPER, 1, 3, 24, {4, 3}, {2, 2}, {1, 1}, {0}, {0}}, 4, {3, 2, 13, 17}},
    {"same lower", {2, QK_PAD_SAME_LOWER, 1, 3, 24, {4, 3}, {2, 2}, {1, 1}, {0}, {0}}, 4, {3, 2, 13, 17}},
    {"valid", {2, QK_PAD_VALID, 1, 3, 12, {3, 2}, {2, 1}, {1, 2}, {9, 9}, {9, 9}}, 4, {3, 2, 13, 17}},
    {"grouped", {2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {4, 4, 10, 9}},
    {"depthwise", {2, QK_PAD_EXPLICIT, 5, 1, 9, {3, 3}, {2, 2}, {1, 1}, {1, 1}, {1, 1}}, 4, {4, 5, 19, 21}},
    {"depthwise, wide", {2, QK_PAD_EXPLICIT, 3, 1, 49, {7, 7}, {1, 1}, {1, 1}, {3, 3}, {3, 3}}, 4, {4, 3, 14, 20}},
    {"depth multiplier", {2, QK_PAD_EXPLICIT, 3, 2, 9, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}}, 4, {4, 3, 14, 20}},
    {"3-D", {3, QK_PAD_SAME_UPPER, 1, 2, 24, {2, 3, 2}, {1, 2, 1}, {1, 1, 2}, {0}, {0}}, 5, {3, 2, 5, 8, 9}},
    {"3-D grouped", {3, QK_PAD_EXPLICIT, 2, 2, 8, {2, 2, 2}, {2, 1, 1}, {1, 2, 1}, {1, 0, 2}, {0}}, 5, {3, 2, 5, 8, 9}},
    /* ConvTranspose: ..., transposed, output_padding, output_shape */
    {"transposed 1-D", {1, QK_PAD_EXPLICIT, 1, 4, 8, {4}, {2}, {1}, {1}, {2}, true}, 3, {5, 2, 37}},
    {"transposed pointwise", {2, QK_PAD_EXPLICIT, 1, 5, 8, {1, 1}, {1, 1}, {1, 1}, {0}, {0}, true}, 4, {5, 8, 9, 11}},
    {"transposed apart", {2, QK_PAD_VALID, 1, 5, 12, {2, 2}, {2, 2}, {1, 1}, {9, 9}, {9}, true}, 4, {4, 3, 12, 20}},
    {"transposed with gaps",
     {2, QK_PAD_EXPLICIT, 1, 2, 4, {2, 1}, {3, 2}, {1, 1}, {1, 0}, {0}, true, {2, 1}},
     4,
     {3, 2, 7, 9}},
    {"transposed dilated",
     {2, QK_PAD_EXPLICIT, 1, 2, 12, {3, 2}, {2, 3}, {2, 4}, {3, 0}, {0, 4}, true, {1, 3}},
     4,
     {3, 2, 9, 8}},
    {"transposed same upper",
     {2, QK_PAD_SAME_UPPER, 1, 3, 24, {4, 3}, {1, 2}, {1, 1}, {0}, {0}, true},
     4,
     {3, 2, 13, 9}},
    {"transposed same lower",
     {2, QK_PAD_SAME_LOWER, 1, 3, 24, {4, 3}, {1, 2}, {1, 1}, {0}, {0}, true},
     4,
     {3, 2, 13, 9}},
    {"transposed, shape",
     {2, QK_PAD_EXPLICIT, 1, 3, 18, {3, 3}, {2, 2}, {1, 1}, {9}, {9}, true, {1}, {24, 14}},
     4,
     {3, 2, 13, 9}},
    {"transposed grouped",
     {2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {2, 2}, {1, 1}, {1, 1}, {1, 1}, true, {1, 1}},
     4,
     {4, 4, 6, 9}},
    {"transposed depthwise",
     {2, QK_PAD_EXPLICIT, 5, 1, 16, {4, 4}, {2, 2}, {1, 1}, {1, 1}, {1, 1}, true},
     4,
     {4, 5, 9, 11}},
    {"transposed 3-D",
     {3, QK_PAD_EXPLICIT, 1, 2, 24, {2, 3, 2}, {2, 1, 2}, {1, 2, 1}, {1, 0, 0}, {0, 2, 1}, true},
     5,
     {3, 2, 4, 6, 5}},
    /* a stride beyond the kernel, and dilations that share no divisor, one and all with the stride */
    {"transposed 3-D with gaps",
     {3, QK_PAD_EXPLICIT, 2, 2, 24, {1, 4, 3}, {2, 4, 3}, {1, 2, 3}, {0, 2, 1}, {1, 0, 2}, true, {1, 3, 2}},
     5,
     {3, 4, 3, 4, 3}},
};
enum { REF_CASES = sizeof ref_cases / sizeof *ref_cases };

static inline qk_tensor ref_tensor(qk_random *random, qk_dtype dtype, int ndim, const int64_t *dims) {
    qk_tensor t = {.dtype = dtype, .ndim = ndim, .affine = {0.013f, dtype == QK_U8 ? 90 : -3}};
    for (int i = 0; i < ndim; i++) t.dims[i] = dims[i];
    const int64_t n = ref_elements(&t);
    uint8_t *bytes = MEMORY(uint8_t, n);
    for (int64_t i = 0; i < n; i++) bytes[i] = (uint8_t)qk_random_next(random);
    t.data = dtype == QK_F32 ? (void *)qk_floats(random, n, -1, 2) : bytes;
    if (dtype == QK_F32) free(bytes);
    return t;
}

/* Random y for the case's x. */
static inline qk_tensor ref_target(qk_random *random, const qk_geometry *g, const qk_tensor *x) {
    int64_t dims[QK_MAX_DIMS];
    for (int i = 0; i < x->ndim; i++) dims[i] = x->dims[i];
    if (g->spatial == 0) dims[x->ndim - 1] = g->outputs;
    if (g->spatial > 0) dims[1] = g->groups * g->outputs;
    for (int i = 0; i < g->spatial; i++) dims[i + 2] = ref_axis_of(g, i, x->dims[i + 2]).out;
    return ref_tensor(random, QK_F32, x->ndim, dims);
}

/* Samples begin .. end - 1 of a batch. */
static inline qk_tensor ref_slice(const qk_tensor *t, int64_t begin, int64_t end) {
    const size_t size = t->dtype == QK_F32 ? sizeof(float) : 1;
    qk_tensor s = *t;
    s.dims[0] = end - begin;
    s.data = (const char *)t->data + (size_t)(begin * (ref_elements(t) / t->dims[0])) * size;
    return s;
}

static inline void ref_free(qk_tensor *t) { free((void *)t->data); }

#endif
