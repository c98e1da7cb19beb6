#include "loss/device_loss.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

static size_t item_size(qk_dtype dtype) { return dtype == QK_F32 ? sizeof(float) : 1; }

static int64_t lines_of(const qk_training_data *d) { return d->geometry.groups * d->geometry.inputs; }

bool qk_device_loss_applies(const qk_training_data *d, int64_t most_samples) {
    const qk_geometry *g = &d->geometry;
    const int64_t sizes[] = {QK_PRODUCT(g->groups, g->outputs, g->inputs, 4), QK_PRODUCT(g->groups, g->inputs, 4),
                             QK_PRODUCT(d->extent.taps, d->extent.positions),
                             QK_PRODUCT(most_samples, d->extent.positions, 2),
                             QK_PRODUCT(lines_of(d), QK_DEVICE_SPLIT)};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 0 || sizes[i] > INT32_MAX) return false;
    return d->stage.activation.kind != QK_SOFTMAX;
}

/* Whole splits of columns, as many as a panel and parts of gradients may take; no more than a call has. */
static int64_t columns_for(const qk_device_loss *l, qk_device_calls calls) {
    const int64_t most = calls.panel_numbers > 0 ? calls.panel_numbers : QK_DEVICE_PANEL;
    const int64_t by_panel = most / (lines_of(l->data) + l->rows) / QK_DEVICE_SPLIT, by_parts = most / l->weights;
    const int64_t all = qk_ceil_div(calls.samples * l->data->extent.positions, QK_DEVICE_SPLIT);
    return qk_larger(1, qk_smaller(all, qk_smaller(by_panel, by_parts))) * QK_DEVICE_SPLIT;
}

static qk_device_layer layer_of(const qk_training_data *d) {
    const qk_geometry *g = &d->geometry;
    const qk_extent *e = &d->extent;
    return (qk_device_layer){.groups = (int)g->groups,
                             .outputs = (int)g->outputs,
                             .inputs = (int)g->inputs,
                             .channels = (int)qk_channels_per_group(d),
                             .taps = (int)e->taps,
                             .positions = (int)e->positions,
                             .x_sample = (int)e->x_sample,
                             .x_channel = (int)e->x_channel,
                             .y_sample = (int)e->y_sample,
                             .y_output = (int)e->y_output,
                             .y_position = (int)e->y_position};
}

static qk_device_stage stage_of(const qk_output_stage *s) {
    return (qk_device_stage){.kind = (int)s->activation.kind,
                             .a = s->activation.a,
                             .b = s->activation.b,
                             .has_slopes = s->slopes != NULL,
                             .folded = s->folded,
                             .quantized = s->quantized,
                             .scale = s->affine.scale,
                             .zero_point = (float)s->affine.zero_point,
                             .lo = (float)s->grid.qmin,
                             .hi = (float)s->grid.qmax};
}

static qk_input_kind kind_of(const qk_training_data *d, double drop_ratio) {
    const uint64_t below = (uint64_t)ceil(drop_ratio * 0x1p53);
    return (qk_input_kind){.dtype = (int)d->x[0].dtype,
                           .zero_point = d->x[0].affine.zero_point,
                           .scale = d->x[0].affine.scale,
                           .below_low = (unsigned)below,
                           .below_high = (unsigned)(below >> 32)};
}

static void write_samples(const qk_buffer *to, const qk_tensor *samples, int64_t count, size_t bytes) {
    for (int64_t i = 0; i < count; i++) qk_buffer_write(to, (size_t)i * bytes, samples[i].data, bytes);
}

static qk_status write_offsets(const qk_device_loss *l) {
    const qk_extent *e = &l->data->extent;
    qk_row_table table = {0};
    int64_t *positions = QK_NEW(int64_t, e->positions);
    qk_status status = positions ? qk_row_table_init(&table, e->taps, e->positions) : QK_E_NOMEM;
    for (int64_t i = 0; i < e->positions && positions; i++) positions[i] = i;
    if (status == QK_OK) {
        qk_row_table_add_inputs(&table, &l->data->geometry, e, 0, positions, e->positions);
        qk_buffer_write(&l->offsets, 0, table.offsets, l->offsets.bytes);
    }
    qk_row_table_destroy(&table);
    free(positions);
    return status;
}

qk_status qk_device_loss_init(qk_device_loss *l, const qk_training_data *d, qk_device *device, qk_device_calls calls) {
    const int64_t rows = d->geometry.groups * d->geometry.outputs, lines = lines_of(d), count = d->count;
    const size_t size = item_size(d->x[0].dtype);
    const bool mixes = calls.drop_ratio < 1;
    *l = (qk_device_loss){.data = d, .device = device, .rows = rows, .weights = rows * d->geometry.inputs};
    l->layer = layer_of(d);
    l->stage = stage_of(&d->stage);
    l->kind = kind_of(d, calls.drop_ratio);
    l->most_columns = columns_for(l, calls);
    const int64_t listed = qk_larger(calls.samples, calls.listed), columns = l->most_columns;
    l->x = qk_buffer_new(device, count * d->extent.x_sample, size);
    l->x_float = qk_buffer_new(device, mixes ? count * d->extent.x_sample : 1, sizeof(float));
    l->y = qk_buffer_new(device, count * d->extent.y_sample, sizeof(float));
    l->offsets = qk_buffer_new(device, d->extent.taps * d->extent.positions, sizeof(int32_t));
    l->slopes = qk_buffer_new(device, rows, sizeof(float));
    l->which = qk_buffer_new(device, listed, sizeof(int32_t));
    l->streams = qk_buffer_new(device, mixes ? listed : 1, sizeof(uint64_t));
    l->input = qk_buffer_new(device, calls.samples * d->extent.x_sample, sizeof(float));
    l->panel = qk_buffer_new(device, lines * columns, sizeof(float));
    l->out = qk_buffer_new(device, rows * columns, sizeof(float));
    l->parts = qk_buffer_new(device, columns / QK_DEVICE_SPLIT * l->weights, sizeof(float));
    l->gradient = qk_buffer_new(device, l->weights, sizeof(double));
    l->sums = qk_buffer_new(device, 4 * rows, sizeof(double));
    l->power = qk_buffer_new(device, lines, sizeof(double));
    l->own_weight = qk_buffer_new(device, l->weights, sizeof(float));
    l->own_bias = qk_buffer_new(device, rows, sizeof(float));
    write_samples(&l->x, d->x, count, (size_t)d->extent.x_sample * size);
    if (mixes) write_samples(&l->x_float, d->x_float, count, (size_t)d->extent.x_sample * sizeof(float));
    write_samples(&l->y, d->y, count, (size_t)d->extent.y_sample * sizeof(float));
    if (d->stage.slopes) qk_buffer_write(&l->slopes, 0, d->stage.slopes, l->slopes.bytes);
    QK_TRY(write_offsets(l));
    return qk_device_status(device);
}

void qk_device_loss_destroy(qk_device_loss *l) {
    qk_buffer *all[] = {&l->x,       &l->x_float, &l->y,          &l->offsets, &l->slopes, &l->which,
                        &l->streams, &l->input,   &l->panel,      &l->out,     &l->parts,  &l->gradient,
                        &l->sums,    &l->power,   &l->own_weight, &l->own_bias};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) qk_buffer_free(all[i]);
}

qk_status qk_device_loss_list(qk_device_loss *l, const int64_t *samples, int64_t first, int64_t count) {
    int32_t *which = QK_NEW(int32_t, count);
    if (!which) return QK_E_NOMEM;
    for (int64_t i = 0; i < count; i++) which[i] = (int32_t)samples[i];
    qk_buffer_write(&l->which, (size_t)first * sizeof *which, which, (size_t)count * sizeof *which);
    free(which);
    return QK_OK;
}

/* ---- a call ------------------------------------------------------------------------------------ */

static qk_work columns_by_lines(int64_t columns, int64_t lines) {
    qk_work work = qk_work_items(columns);
    work.items[1] = (size_t)lines;
    return work;
}

static void take_inputs(qk_device_loss *l, qk_device_call call) {
    const int first = (int)call.first;
    qk_input_kind kind = l->kind;
    kind.mixes = call.mixes;
    QK_RUN(l->device, take_inputs, columns_by_lines(l->layer.x_sample, call.count), QK_BUFFER(l->input),
           QK_BUFFER(l->x), QK_BUFFER(l->x_float), QK_BUFFER(l->which), QK_VALUE(first), QK_BUFFER(l->streams),
           QK_VALUE(l->layer), QK_VALUE(kind));
}

/* out (rows, columns) = weight panel */
static void forward(qk_device_loss *l, const qk_buffer *weight, int columns) {
    const int O = l->layer.outputs, K = l->layer.inputs;
    const qk_product p = {.m = O,
                          .n = columns,
                          .k = K,
                          .batches = l->layer.groups,
                          .splits = 1,
                          .split = K,
                          .a_line = K,
                          .a_column = 1,
                          .a_batch = O * K,
                          .b_line = columns,
                          .b_column = 1,
                          .b_batch = K * columns};
    QK_RUN(l->device, multiply, qk_work_product(&p), QK_BUFFER(l->out), QK_BUFFER(*weight), QK_BUFFER(l->panel),
           QK_VALUE(p));
}

/* gradient (rows, K) += out panel' */
static void backward(qk_device_loss *l, int columns, int begins) {
    const int O = l->layer.outputs, K = l->layer.inputs, weights = (int)l->weights;
    const qk_product p = {.m = O,
                          .n = K,
                          .k = columns,
                          .batches = l->layer.groups,
                          .splits = (int)qk_ceil_div(columns, QK_DEVICE_SPLIT),
                          .split = QK_DEVICE_SPLIT,
                          .a_line = columns,
                          .a_column = 1,
                          .a_batch = O * columns,
                          .b_line = 1,
                          .b_column = columns,
                          .b_batch = K * columns};
    QK_RUN(l->device, multiply, qk_work_product(&p), QK_BUFFER(l->parts), QK_BUFFER(l->out), QK_BUFFER(l->panel),
           QK_VALUE(p));
    QK_RUN(l->device, add_parts, qk_work_items(weights), QK_BUFFER(l->gradient), QK_BUFFER(l->parts),
           QK_VALUE(p.splits), QK_VALUE(weights), QK_VALUE(begins));
}

void qk_device_loss_run(qk_device_loss *l, const qk_buffer *weight, const qk_buffer *bias, qk_device_call call) {
    const int64_t all = call.count * l->data->extent.positions, lines = lines_of(l->data);
    const int first = (int)call.first;
    take_inputs(l, call);
    for (int64_t at = 0; at < all; at += l->most_columns) {
        const qk_columns c = {(int)at, (int)qk_smaller(l->most_columns, all - at)};
        const int begins = at == 0;
        QK_RUN(l->device, fill_panel, columns_by_lines(c.count, lines), QK_BUFFER(l->panel), QK_BUFFER(l->input),
               QK_BUFFER(l->offsets), QK_VALUE(l->layer), QK_VALUE(c));
        forward(l, weight, c.count);
        QK_RUN(l->device, judge_outputs, qk_work_lines(l->rows), QK_BUFFER(l->out), QK_BUFFER(l->y),
               QK_BUFFER(l->which), QK_VALUE(first), QK_BUFFER(*bias), QK_BUFFER(l->slopes), QK_BUFFER(l->sums),
               QK_VALUE(l->layer), QK_VALUE(c), QK_VALUE(l->stage));
        if (call.gradient) backward(l, c.count, begins);
        if (call.power)
            QK_RUN(l->device, sum_squares, qk_work_lines(lines), QK_BUFFER(l->power), QK_BUFFER(l->panel),
                   QK_VALUE(c.count), QK_VALUE(begins));
    }
}

/* ---- results to the processor ------------------------------------------------------------------ */

/* sums (rows, 4), as the device found them; columns: that they are sums over. */
static void use_sums(const double *sums, int64_t rows, double columns, qk_reconstruction_result *r) {
    double target_power = 0;
    r->loss = 0;
    for (int64_t row = 0; row < rows; row++) {
        const double *of = sums + 4 * row, loss = of[0] / columns;
        r->loss += loss;
        target_power += of[3] / columns;
        if (r->row_loss) r->row_loss[row] = loss;
        if (r->slope) r->slope[row] = (float)(2 * of[1] / columns);
        if (r->slope_power) r->slope_power[row] = of[2] / columns;
    }
    if (r->target_power) *r->target_power = target_power;
}

qk_status qk_device_reconstruct(qk_device_loss *l, const float *weight, const float *bias, const int64_t *samples,
                                int64_t count, qk_reconstruction_result *result) {
    const int64_t lines = lines_of(l->data), most = qk_larger(4 * l->rows, qk_larger(l->weights, lines));
    const double columns = (double)(count * l->data->extent.positions);
    double *numbers = QK_NEW(double, most);
    qk_status status = numbers ? qk_device_loss_list(l, samples, 0, count) : QK_E_NOMEM;
    if (status == QK_OK) {
        qk_buffer_write(&l->own_weight, 0, weight, l->own_weight.bytes);
        if (bias) qk_buffer_write(&l->own_bias, 0, bias, l->own_bias.bytes);
        if (!bias) qk_buffer_clear(&l->own_bias);
        qk_device_loss_run(l, &l->own_weight, &l->own_bias,
                           (qk_device_call){.count = count, .gradient = result->gradient, .power = result->mean_power});
        qk_buffer_read(&l->sums, 0, numbers, l->sums.bytes);
        use_sums(numbers, l->rows, columns, result);
        if (result->gradient) qk_buffer_read(&l->gradient, 0, numbers, l->gradient.bytes);
        for (int64_t i = 0; i < l->weights && result->gradient; i++)
            result->gradient[i] = (float)(2 / columns * numbers[i]);
        if (result->mean_power) qk_buffer_read(&l->power, 0, numbers, l->power.bytes);
        for (int64_t i = 0; i < lines && result->mean_power; i++) result->mean_power[i] = numbers[i] / columns;
        status = qk_device_status(l->device);
    }
    free(numbers);
    return status;
}
