#include "ops/extent.h"

#include <stdlib.h>

#include "base/sizes.h"

static bool is_within(int64_t size, int64_t least) { return size >= least && size <= INT32_MAX; }

static bool are_sizes_sane(const qk_geometry *g) {
    if (g->spatial < 0 || g->spatial > QK_MAX_SPATIAL) return false;
    if (!is_within(g->groups, 1) || !is_within(g->inputs, 1) || !is_within(g->outputs, 1)) return false;
    if (g->spatial == 0 && (g->groups != 1 || g->transposed)) return false;
    int64_t channels = g->inputs; /* per group, times the sizes of the kernel that are still to come */
    for (int i = 0; i < g->spatial; channels /= g->kernel[i++])
        if (!is_within(g->kernel[i], 1) || channels % g->kernel[i] || !is_within(g->stride[i], 1) ||
            !is_within(g->dilation[i], 1) || !is_within(g->pad_begin[i], 0) || !is_within(g->pad_end[i], 0) ||
            !is_within(g->output_padding[i], 0) || !is_within(g->output_shape[i], 0))
            return false;
    return true;
}

qk_status qk_geometry_check(const qk_geometry *g) {
    if (!are_sizes_sane(g)) return QK_E_ARG;
    const int64_t weights = QK_PRODUCT(g->groups, g->inputs, g->outputs);
    return weights < 0 || weights > QK_MOST_NUMBERS ? QK_E_NOMEM : QK_OK;
}

static int64_t element_count(const qk_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dims[i];
    return n;
}

/* Rows of a matrix: x (samples, ..., K), y (samples, ..., O). */
static qk_status rows_extent(const qk_geometry *g, const qk_tensor *x, const qk_tensor *y, qk_extent *e) {
    if (g->groups != 1 || x->ndim < 2 || x->dims[x->ndim - 1] != g->inputs) return QK_E_SHAPE;
    e->samples = x->dims[0];
    e->positions = 1;
    for (int i = 1; i < x->ndim - 1; i++) e->positions *= x->dims[i];
    e->channels = g->inputs;
    e->taps = 1;
    e->x_sample = e->positions * g->inputs;
    e->x_channel = 1;
    e->y_sample = e->positions * g->outputs;
    e->y_output = 1;
    e->y_position = g->outputs;
    if (y && (y->ndim < 2 || y->dims[0] != e->samples || y->dims[y->ndim - 1] != g->outputs ||
              element_count(y) != e->samples * e->y_sample))
        return QK_E_SHAPE;
    return QK_OK;
}

/* Output size and padding at the beginning of one axis, as ONNX's Conv defines auto_pad. */
static void resolve_conv_axis(const qk_geometry *g, int axis, qk_extent *e) {
    const int64_t in = e->in[axis], stride = g->stride[axis];
    const int64_t window = g->dilation[axis] * (g->kernel[axis] - 1) + 1;
    int64_t total = 0; /* padding on both sides */
    switch (g->auto_pad) {
    case QK_PAD_EXPLICIT:
        e->pad[axis] = g->pad_begin[axis];
        total = g->pad_begin[axis] + g->pad_end[axis];
        break;
    case QK_PAD_VALID: e->pad[axis] = 0; break;
    case QK_PAD_SAME_UPPER:
    case QK_PAD_SAME_LOWER: {
        const int64_t out = qk_ceil_div(in, stride);
        total = (out - 1) * stride + window - in;
        if (total < 0) total = 0;
        e->pad[axis] = g->auto_pad == QK_PAD_SAME_UPPER ? total / 2 : total - total / 2;
        break;
    }
    }
    const int64_t room = in + total - window;
    e->out[axis] = room < 0 ? 0 : room / stride + 1;
}

/* A ConvTranspose has its padding cut off the output. SAME would need a negative one where the stride is larger than
 * the window: as in onnxruntime there is none then, and there are fewer outputs than in * stride. */
static void resolve_transposed_axis(const qk_geometry *g, int axis, qk_extent *e) {
    const int64_t in = e->in[axis], stride = g->stride[axis], given = g->output_shape[axis];
    const bool upper = g->auto_pad == QK_PAD_SAME_UPPER, same = upper || g->auto_pad == QK_PAD_SAME_LOWER;
    const int64_t window = g->dilation[axis] * (g->kernel[axis] - 1) + 1;
    const int64_t whole = (in - 1) * stride + window + g->output_padding[axis];
    int64_t total = 0; /* padding on both sides */
    if (given > 0 || same) {
        const int64_t wanted = given > 0 ? given : in * stride;
        if (whole > wanted) total = whole - wanted;
        e->pad[axis] = upper ? total / 2 : total - total / 2;
    } else if (g->auto_pad == QK_PAD_EXPLICIT) {
        total = g->pad_begin[axis] + g->pad_end[axis];
        e->pad[axis] = g->pad_begin[axis];
    }
    const int64_t out = given > 0 ? given : whole - total;
    e->out[axis] = out < 0 ? 0 : out;
}

qk_status qk_extent_of(const qk_geometry *g, const qk_tensor *x, const qk_tensor *y, qk_extent *e) {
    *e = (qk_extent){0};
    /* offsets are 32-bit: feed fewer samples at a time */
    if (element_count(x) > INT32_MAX || (y && element_count(y) > INT32_MAX)) return QK_E_SHAPE;
    if (x->dtype != QK_F32 && abs(x->affine.zero_point / 2) > 1 << 23) return QK_E_ARG; /* no float32 integer */
    if (g->spatial == 0) return rows_extent(g, x, y, e);
    if (x->ndim != g->spatial + 2) return QK_E_SHAPE;
    e->samples = x->dims[0];
    e->channels = x->dims[1];
    e->taps = 1;
    e->positions = 1;
    e->x_channel = 1;
    for (int i = 0; i < g->spatial; i++) {
        e->in[i] = x->dims[i + 2];
        if (g->transposed)
            resolve_transposed_axis(g, i, e);
        else
            resolve_conv_axis(g, i, e);
        if (e->in[i] == 0) e->out[i] = 0; /* nothing but padding to read */
        e->taps *= g->kernel[i];
        e->positions = QK_PRODUCT(e->positions, e->out[i]);
        e->x_channel *= e->in[i];
    }
    if (e->positions < 0 || e->positions > INT32_MAX) return QK_E_SHAPE;
    if (e->channels % g->groups || e->channels / g->groups * e->taps != g->inputs) return QK_E_SHAPE;
    e->x_sample = e->channels * e->x_channel;
    e->y_output = e->positions;
    e->y_position = 1;
    e->y_sample = g->groups * g->outputs * e->positions;
    if (y) {
        if (y->ndim != x->ndim || y->dims[0] != e->samples || y->dims[1] != g->groups * g->outputs) return QK_E_SHAPE;
        for (int i = 0; i < g->spatial; i++)
            if (y->dims[i + 2] != e->out[i]) return QK_E_SHAPE;
    }
    return QK_OK;
}
