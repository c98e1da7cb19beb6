#include "moments/device_moments.h"

#include <string.h>

#include "base/memory.h"
#include "moments/layer.h"

static int64_t outputs_of(const qk_layer *layer) {
    return layer->with_target ? layer->geometry.groups * layer->geometry.outputs : 0;
}

static int64_t inputs_of(const qk_layer *layer) { return layer->geometry.groups * layer->geometry.inputs; }

static int64_t element_count(const qk_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dims[i];
    return n;
}

/* A buffer of at least so many bytes; what it held is lost. */
static void grow(qk_buffer *b, qk_device *d, size_t bytes) {
    if (b->memory && b->bytes >= bytes) return;
    qk_buffer_free(b);
    *b = qk_buffer_new(d, (int64_t)bytes, 1);
}

static void make_set(const qk_layer *layer, qk_device_set *set, const qk_sums *s) {
    qk_device *d = layer->on_device.device;
    const int64_t inputs = inputs_of(layer), outputs = outputs_of(layer), K = layer->geometry.inputs;
    set->x = qk_buffer_new(d, inputs * s->capacity, sizeof(float));
    set->y = qk_buffer_new(d, outputs * s->capacity, sizeof(float));
    set->gram = qk_buffer_new(d, inputs * K, sizeof(double));
    set->cross = qk_buffer_new(d, outputs * K, sizeof(double));
    set->sum_x = qk_buffer_new(d, 2 * inputs, sizeof(double));
    set->sum_y = qk_buffer_new(d, 2 * outputs, sizeof(double));
}

static void free_set(qk_device_set *set) {
    qk_buffer *all[] = {&set->x, &set->y, &set->gram, &set->cross, &set->sum_x, &set->sum_y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) qk_buffer_free(all[i]);
}

qk_status qk_device_moments_begin(qk_layer *layer, qk_device_batch batch) {
    qk_device_moments *m = &layer->on_device;
    const int64_t K = layer->geometry.inputs, numbers = QK_PRODUCT(inputs_of(layer), K);
    if (numbers > INT32_MAX || QK_PRODUCT(outputs_of(layer), K) > INT32_MAX) return QK_E_DEVICE_NOMEM;
    for (int set = 0; set < 2 && layer->sets[set]; set++) {
        const qk_sums *s = layer->sets[set];
        const size_t panel = (size_t)(inputs_of(layer) * s->capacity) * sizeof(float);
        if (m->sets[set].gram.memory && m->sets[set].x.bytes != panel) free_set(&m->sets[set]); /* it is collected */
        if (!m->sets[set].gram.memory) make_set(layer, &m->sets[set], s);
        grow(&m->x_offsets, m->device, (size_t)(s->taps * s->x_rows.capacity) * sizeof(int32_t));
        grow(&m->y_offsets, m->device, (size_t)s->y_rows.capacity * sizeof(int32_t));
    }
    const size_t size = batch.x->dtype == QK_F32 ? sizeof(float) : 1, x_bytes = (size_t)element_count(batch.x) * size;
    grow(&m->x, m->device, x_bytes);
    qk_buffer_write(&m->x, 0, batch.x->data, x_bytes);
    if (batch.y) {
        const size_t y_size = batch.y->dtype == QK_F32 ? sizeof(float) : 1;
        grow(&m->y, m->device, (size_t)element_count(batch.y) * y_size);
        qk_buffer_write(&m->y, 0, batch.y->data, (size_t)element_count(batch.y) * y_size);
    }
    return qk_device_status(m->device);
}

/* A panel that is filled from a tensor on the device. */
typedef struct {
    const qk_buffer *panel, *tensor, *offsets;
    const qk_row_table *rows;
    qk_input_kind kind;
    int64_t channels, channel_stride;
} cut;

static void run_cut(qk_device *d, const cut *c, const qk_sums *s) {
    const qk_cut of = {.taps = (int)c->rows->taps,
                       .channel_stride = (int)c->channel_stride,
                       .capacity = (int)s->capacity,
                       .column = (int)s->used,
                       .count = (int)c->rows->count};
    qk_work work = qk_work_items(of.count);
    work.items[1] = (size_t)(c->channels * c->rows->taps);
    for (int64_t tap = 0; tap < c->rows->taps; tap++) /* without the rows that are not there */
        qk_buffer_write(c->offsets, (size_t)(tap * of.count) * sizeof(int32_t),
                        c->rows->offsets + tap * c->rows->capacity, (size_t)of.count * sizeof(int32_t));
    QK_RUN(d, cut_rows, work, QK_BUFFER(*c->panel), QK_BUFFER(*c->tensor), QK_BUFFER(*c->offsets), QK_VALUE(of),
           QK_VALUE(c->kind));
}

static qk_input_kind kind_of(const qk_tensor *t, bool as_bytes) {
    return (qk_input_kind){
        .dtype = (int)t->dtype, .zero_point = t->affine.zero_point, .scale = as_bytes ? 1 : t->affine.scale};
}

static int set_of(const qk_layer *layer, const qk_sums *s) { return s == layer->sets[QK_HELD_OUT]; }

void qk_device_moments_cut(qk_layer *layer, const qk_sums *s, qk_device_batch batch, const qk_extent *e) {
    qk_device_moments *m = &layer->on_device;
    const qk_device_set *set = &m->sets[set_of(layer, s)];
    run_cut(
        m->device,
        &(cut){&set->x, &m->x, &m->x_offsets, &s->x_rows, kind_of(batch.x, layer->as_bytes), e->channels, e->x_channel},
        s);
    if (batch.y)
        run_cut(
            m->device,
            &(cut){&set->y, &m->y, &m->y_offsets, &s->y_rows, kind_of(batch.y, false), outputs_of(layer), e->y_output},
            s);
}

/* to (groups, m, n) += a b', of the lines of two panels. */
static void add_products(qk_device *d, const qk_buffer *to, const qk_buffer *a, const qk_buffer *b,
                         qk_panel_product p) {
    const qk_product size = {.m = p.m, .n = p.n, .batches = p.groups, .splits = 1};
    if (p.m == 0) return;
    QK_RUN(d, add_products, qk_work_product(&size), QK_BUFFER(*to), QK_BUFFER(*a), QK_BUFFER(*b), QK_VALUE(p));
}

static void add_lines(qk_device *d, const qk_buffer *to, const qk_buffer *panel, int64_t lines, const qk_sums *s) {
    const int capacity = (int)s->capacity, used = (int)s->used;
    if (lines == 0) return;
    QK_RUN(d, sum_lines, qk_work_lines(lines), QK_BUFFER(*to), QK_BUFFER(*panel), QK_VALUE(capacity), QK_VALUE(used));
}

void qk_device_moments_add(const qk_layer *layer, const qk_sums *s) {
    qk_device *d = layer->on_device.device;
    const qk_device_set *set = &layer->on_device.sets[set_of(layer, s)];
    const int K = (int)layer->geometry.inputs, O = layer->with_target ? (int)layer->geometry.outputs : 0;
    const qk_panel_product gram = {.m = K,
                                   .n = K,
                                   .groups = (int)layer->geometry.groups,
                                   .capacity = (int)s->capacity,
                                   .used = (int)s->used,
                                   .is_lower = 1};
    qk_panel_product cross = gram;
    cross.m = O;
    cross.is_lower = 0;
    add_products(d, &set->gram, &set->x, &set->x, gram);
    add_products(d, &set->cross, &set->y, &set->x, cross);
    add_lines(d, &set->sum_x, &set->x, inputs_of(layer), s);
    add_lines(d, &set->sum_y, &set->y, outputs_of(layer), s);
}

/* ---- back to the processor --------------------------------------------------------------------- */

/* Sums as they come from the device: (groups * K, K), (groups * O, K), (groups * K, 2), (groups * O, 2). */
typedef struct {
    double *gram, *cross, *sum_x, *sum_y;
} sums;

/* From sums of a - z and (a - z) (b - z), where z is the zero point, to those of a and a (b - 128):
 * csrc/moments/layer.c has the way back. All are integers. */
static void add_bytes(const qk_layer *layer, qk_sums *s, const sums *of, double n) {
    const int64_t K = s->inputs;
    const double z = layer->affine.zero_point;
    for (int64_t i = 0; i < inputs_of(layer); i++) {
        const int64_t group = i / K * K;
        const double a = of->sum_x[2 * i] + n * z;
        for (int64_t j = 0; j <= i % K; j++) {
            const double b = of->sum_x[2 * (group + j)] + n * z;
            s->gram[i * K + j] += of->gram[i * K + j] - (128 - z) * a + z * b - n * z * z;
        }
        s->sum_x[i] += a;
    }
}

static void add_reals(const qk_layer *layer, qk_sums *s, const sums *of) {
    const int64_t K = s->inputs;
    for (int64_t i = 0; i < inputs_of(layer); i++) {
        for (int64_t j = 0; j <= i % K; j++) s->gram[i * K + j] += of->gram[i * K + j];
        s->sum_x[i] += of->sum_x[2 * i];
    }
}

static void take_set(const qk_layer *layer, qk_sums *s, const sums *of, double n) {
    const int64_t outputs = outputs_of(layer);
    if (layer->as_bytes)
        add_bytes(layer, s, of, n);
    else
        add_reals(layer, s, of);
    for (int64_t i = 0; i < outputs * s->inputs; i++) s->cross[i] += of->cross[i];
    for (int64_t o = 0; o < outputs; o++) {
        s->sum_y[o] += of->sum_y[2 * o];
        s->power[o] += of->sum_y[2 * o + 1];
    }
}

static qk_status collect_set(qk_layer *layer, int which) {
    qk_device_set *set = &layer->on_device.sets[which];
    const int64_t inputs = inputs_of(layer), outputs = outputs_of(layer), K = layer->geometry.inputs;
    if (layer->sets[which] == NULL || layer->sets[which]->device_rows == 0) return QK_OK;
    double *numbers = QK_NEW(double, inputs + outputs, K + 2);
    if (!numbers) return QK_E_NOMEM;
    const sums of = {numbers, numbers + inputs * K, numbers + (inputs + outputs) * K,
                     numbers + (inputs + outputs) * K + 2 * inputs};
    const qk_buffer *from[] = {&set->gram, &set->cross, &set->sum_x, &set->sum_y};
    double *to[] = {of.gram, of.cross, of.sum_x, of.sum_y};
    const int64_t sizes[] = {inputs * K, outputs * K, 2 * inputs, 2 * outputs};
    for (int i = 0; i < 4; i++) {
        qk_buffer_read(from[i], 0, to[i], (size_t)sizes[i] * sizeof *numbers);
        qk_buffer_clear(from[i]);
    }
    const qk_status status = qk_device_status(layer->on_device.device);
    if (status == QK_OK) take_set(layer, layer->sets[which], &of, (double)layer->sets[which]->device_rows);
    layer->sets[which]->device_rows = 0;
    free(numbers);
    return status;
}

qk_status qk_device_moments_collect(qk_layer *layer) {
    for (int set = 0; set < 2; set++) QK_TRY(collect_set(layer, set));
    return QK_OK;
}

void qk_device_moments_leave(qk_layer *layer) {
    qk_device_moments *m = &layer->on_device;
    for (int set = 0; set < 2; set++) free_set(&m->sets[set]);
    qk_buffer *all[] = {&m->x, &m->y, &m->x_offsets, &m->y_offsets};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) qk_buffer_free(all[i]);
    m->device = NULL;
    m->active = false;
}
