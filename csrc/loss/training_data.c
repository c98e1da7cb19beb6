#include "loss/training_data.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/kernels.h"

qk_status qk_training_data_new(qk_training_data **out, const qk_geometry *geometry, const qk_output_stage *stage,
                               int holdout) {
    *out = NULL;
    QK_TRY(qk_geometry_check(geometry));
    if (holdout < 0 || holdout == 1) return QK_E_ARG;
    if (stage && stage->activation.kind == QK_SOFTMAX && stage->folded) return QK_E_ARG;
    if (stage && stage->quantized && !(stage->affine.scale > 0 && stage->grid.qmin < stage->grid.qmax)) return QK_E_ARG;
    qk_training_data *d = QK_NEW(qk_training_data, 1);
    if (!d) return QK_E_NOMEM;
    d->geometry = *geometry;
    if (stage) d->stage = *stage;
    d->holdout = holdout;
    *out = d;
    return QK_OK;
}

void qk_training_data_free(qk_training_data *d) {
    if (!d) return;
    free(d->x);
    free(d->x_float);
    free(d->y);
    free(d);
}

static bool grow(qk_training_data *d, int64_t more) {
    if (d->count + more <= d->room) return true;
    const int64_t room = 2 * (d->count + more);
    qk_tensor **arrays[] = {&d->x, &d->x_float, &d->y};
    if (QK_PRODUCT(room, sizeof(qk_tensor)) < 0) return false;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        qk_tensor *larger = realloc(*arrays[i], (size_t)room * sizeof *larger);
        if (!larger) return false;
        *arrays[i] = larger;
    }
    d->room = room;
    return true;
}

static size_t item_size(qk_dtype dtype) { return dtype == QK_F32 ? sizeof(float) : 1; }

static qk_tensor sample_of(const qk_tensor *batch, int64_t index, int64_t stride) {
    qk_tensor t = *batch;
    t.data = (const char *)batch->data + (size_t)(index * stride) * item_size(batch->dtype);
    t.dims[0] = 1;
    return t;
}

static bool is_of_one_shape(const qk_tensor *a, const qk_tensor *b) {
    for (int i = 1; i < a->ndim && a->ndim == b->ndim; i++)
        if (a->dims[i] != b->dims[i]) return false;
    return a->ndim == b->ndim;
}

qk_status qk_training_data_add(qk_training_data *d, const qk_tensor *x, const qk_tensor *x_float, const qk_tensor *y) {
    qk_extent e;
    QK_TRY(qk_extent_of(&d->geometry, x, y, &e));
    if (e.samples == 0 || e.positions == 0 || y->dtype != QK_F32) return QK_E_SHAPE;
    if (x_float && (x_float->dtype != QK_F32 || x_float->dims[0] != x->dims[0] || !is_of_one_shape(x, x_float)))
        return QK_E_SHAPE;
    if (d->count == 0) {
        if (d->stage.axis < 0) d->stage.axis += y->ndim;
        if (d->stage.activation.kind == QK_SOFTMAX && (d->stage.axis < 1 || d->stage.axis >= y->ndim))
            return QK_E_SHAPE;
        d->extent = e;
    } else if (x->dtype != d->x[0].dtype || !is_of_one_shape(x, d->x) || !is_of_one_shape(y, d->y) ||
               !x_float != !d->x_float[0].data) {
        return QK_E_SHAPE;
    }
    if (!grow(d, e.samples)) return QK_E_NOMEM;
    for (int64_t s = 0; s < e.samples; s++) {
        d->x[d->count] = sample_of(x, s, e.x_sample);
        d->x_float[d->count] = x_float ? sample_of(x_float, s, e.x_sample) : (qk_tensor){0};
        d->y[d->count++] = sample_of(y, s, e.y_sample);
    }
    return QK_OK;
}

bool qk_samples_are_finite(const qk_training_data *d) {
    const qk_kernels *k = qk_kernels_get();
    const size_t x = (size_t)d->extent.x_sample, y = (size_t)d->extent.y_sample;
    float lo = 0, hi = 0;
    for (int64_t s = 0; s < d->count; s++)
        if ((d->x[s].dtype == QK_F32 && !k->min_max(d->x[s].data, x, &lo, &hi)) ||
            (d->x_float[s].data && !k->min_max(d->x_float[s].data, x, &lo, &hi)) ||
            !k->min_max(d->y[s].data, y, &lo, &hi))
            return false;
    return true;
}

bool qk_is_held_out(const qk_training_data *d, int64_t sample) {
    return d->holdout > 0 && d->count / 2 >= d->holdout && sample % d->holdout == d->holdout - 1;
}

int64_t qk_channels_per_group(const qk_training_data *d) { return d->geometry.inputs / d->extent.taps; }

qk_status qk_pieces_init(qk_pieces *p, const qk_training_data *d, int64_t size) {
    const int64_t all = d->extent.positions;
    *p = (qk_pieces){.size = size, .tables = QK_NEW(qk_row_table, qk_ceil_div(all, size))};
    int64_t *positions = QK_NEW(int64_t, size);
    qk_status status = p->tables && positions ? QK_OK : QK_E_NOMEM;
    for (int64_t first = 0; first < all && status == QK_OK; first += size) {
        const int64_t n = all - first < size ? all - first : size;
        qk_row_table *t = &p->tables[p->count++];
        status = qk_row_table_init(t, d->extent.taps, n);
        if (status != QK_OK) break;
        for (int64_t i = 0; i < n; i++) positions[i] = first + i;
        qk_row_table_add_inputs(t, &d->geometry, &d->extent, 0, positions, n);
        qk_row_table_seal(t);
    }
    free(positions);
    return status;
}

void qk_pieces_destroy(qk_pieces *p) {
    for (int64_t i = 0; i < p->count; i++) qk_row_table_destroy(&p->tables[i]);
    free(p->tables);
}

void qk_fill_piece(const qk_training_data *d, qk_tensor x, const qk_piece_fill *to) {
    const int64_t channels = qk_channels_per_group(d);
    /* to start at the group's first channel, so that its lines start the panel */
    x.data = (const char *)x.data + (size_t)(to->group * channels * d->extent.x_channel) * item_size(x.dtype);
    const qk_panel_fill_job job = {to->panel, to->ld, to->column, &x, d->extent.x_channel, to->piece, to->bytes};
    qk_panel_fill(&job, 0, channels);
}
