/* A layer's data: from batches through chosen rows and panels to moments; python/layer.c is its Python side. */
#include "moments/layer.h"

#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "moments/kept_rows.h"
#include "moments/row_choice.h"
#include "moments/row_feed.h"

/* Rows per panel: panels of floats take about half a MiB and those of bytes one, and so stay in the second-level cache.
 * Without targets they take a quarter of it, as then the data of all layers of a model is gathered at the same time.
 * Phases share the most rows, as they share the layer's. */
int64_t qk_panel_capacity(const qk_layer *layer, const qk_sums *s) {
    const int64_t inputs = layer->geometry.groups * s->inputs,
                  outputs = layer->geometry.groups * layer->geometry.outputs;
    const int64_t column = layer->as_bytes ? inputs + 4 * outputs : 4 * (inputs + outputs);
    const int64_t bytes = (layer->as_bytes ? 1 << 20 : 1 << 19) >> (layer->with_target ? 0 : 2),
                  most = 2048 / layer->phases.count;
    const int64_t rows = bytes / column < most ? bytes / column : most;
    const int64_t least = layer->phases.count <= 256 ? 128 : QK_PANEL_BLOCK; /* each phase gets few rows anyhow */
    return rows < least ? least : rows / QK_PANEL_BLOCK * QK_PANEL_BLOCK;
}

static int64_t tap_count(const qk_geometry *g) {
    int64_t taps = 1;
    for (int i = 0; i < g->spatial; i++) taps *= g->kernel[i];
    return taps;
}

static qk_status sums_init(qk_sums *s, const qk_layer *layer, int64_t phase) {
    const qk_geometry *g = &layer->geometry;
    const qk_phases *p = &layer->phases;
    const int64_t all = tap_count(g), taps = qk_phase_taps(p, g, phase, NULL);
    s->taps = taps;
    s->inputs = g->inputs / all * taps;
    s->stride = 1;
    if (taps < all) {
        s->which = QK_NEW(int64_t, taps);
        if (!s->which) return QK_E_NOMEM;
        qk_phase_taps(p, g, phase, s->which);
    }
    return QK_OK;
}

qk_status qk_sums_allocate(qk_sums *s, const qk_layer *layer) {
    const qk_geometry *g = &layer->geometry;
    const int64_t inputs = g->groups * s->inputs, outputs = layer->with_target ? g->groups * g->outputs : 0;
    if (s->gram) return QK_OK;
    s->gram = QK_NEW(double, inputs, s->inputs);
    s->cross = QK_NEW(double, outputs, s->inputs);
    s->sum_x = QK_NEW(double, inputs);
    s->sum_y = QK_NEW(double, outputs);
    s->power = QK_NEW(double, outputs);
    return s->gram && s->cross && s->sum_x && s->sum_y && s->power ? QK_OK : QK_E_NOMEM;
}

qk_status qk_panel_resize(qk_sums *s, const qk_layer *layer, int64_t capacity) {
    const qk_geometry *g = &layer->geometry;
    const int64_t inputs = g->groups * s->inputs, outputs = layer->with_target ? g->groups * g->outputs : 0;
    uint8_t *bytes = layer->as_bytes ? QK_NEW(uint8_t, inputs, capacity) : NULL;
    float *x = layer->as_bytes ? NULL : QK_NEW(float, inputs, capacity), *y = QK_NEW(float, outputs, capacity);
    if (!(bytes || x) || !y) {
        free(bytes);
        free(x);
        free(y);
        return QK_E_NOMEM;
    }
    const size_t used = (size_t)s->used;
    for (int64_t i = 0; i < inputs && used > 0; i++)
        if (bytes)
            memcpy(bytes + i * capacity, s->bytes + i * s->capacity, used);
        else
            memcpy(x + i * capacity, s->x + i * s->capacity, used * sizeof *x);
    for (int64_t i = 0; i < outputs && used > 0; i++)
        memcpy(y + i * capacity, s->y + i * s->capacity, used * sizeof *y);
    free(s->bytes);
    free(s->x);
    free(s->y);
    s->bytes = bytes;
    s->x = x;
    s->y = y;
    s->capacity = capacity;
    return QK_OK;
}

static qk_status panels_init(qk_sums *s, const qk_layer *layer, int64_t capacity) {
    const int64_t waiting = qk_panel_capacity(layer, s);
    QK_TRY(qk_panel_resize(s, layer, capacity > 0 ? capacity : waiting));
    qk_row_table_destroy(&s->x_rows);
    qk_row_table_destroy(&s->y_rows);
    QK_TRY(qk_row_table_init(&s->x_rows, s->taps, waiting));
    s->x_rows.which = s->which;
    return qk_row_table_init(&s->y_rows, 1, waiting);
}

static void sets_destroy(qk_layer *layer) {
    for (int set = 0; set < 2; set++) {
        for (int64_t phase = 0; layer->sets[set] && phase < layer->phases.count; phase++) {
            qk_sums *s = &layer->sets[set][phase];
            void *arrays[] = {s->which, s->x, s->bytes, s->y, s->gram, s->cross, s->sum_x, s->sum_y, s->power};
            for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
            qk_row_table_destroy(&s->x_rows);
            qk_row_table_destroy(&s->y_rows);
        }
        free(layer->sets[set]);
        layer->sets[set] = NULL;
    }
}

/* Nothing is left allocated after a failure. */
static qk_status sets_init(qk_layer *layer) {
    qk_status status = QK_OK;
    for (int set = 0; set < (layer->choice.holdout ? 2 : 1); set++) {
        layer->sets[set] = QK_NEW(qk_sums, layer->phases.count);
        if (!layer->sets[set]) status = QK_E_NOMEM;
        for (int64_t phase = 0; phase < layer->phases.count && status == QK_OK; phase++)
            status = sums_init(&layer->sets[set][phase], layer, phase);
    }
    if (status != QK_OK) sets_destroy(layer);
    return status;
}

qk_status qk_layer_new(qk_layer **out, const qk_geometry *geometry, const qk_row_choice *rows, bool with_target) {
    *out = NULL;
    QK_TRY(qk_geometry_check(geometry));
    if (rows->samples < 1 || rows->max_rows < 1 || rows->holdout < 0 || rows->holdout == 1) return QK_E_ARG;
    if (rows->kept < 0 || rows->kept > QK_MOST_KEPT) return QK_E_ARG;
    const int64_t squares = QK_PRODUCT(geometry->groups, geometry->inputs, geometry->inputs);
    if (squares < 0 || squares > QK_MOST_NUMBERS) return QK_E_NOMEM;
    qk_layer *layer = QK_NEW(qk_layer, 1);
    if (!layer) return QK_E_NOMEM;
    *layer = (qk_layer){
        .geometry = *geometry, .choice = *rows, .with_target = with_target, .phases = qk_phases_of(geometry)};
    const qk_status status = sets_init(layer);
    if (status == QK_OK)
        *out = layer;
    else
        free(layer);
    return status;
}

static void leave_device(qk_layer *layer) {
    qk_device *device = layer->on_device.device;
    if (!device) return;
    qk_device_take(device);
    qk_device_moments_leave(layer);
    qk_device_release(device);
}

void qk_layer_free(qk_layer *layer) {
    if (!layer) return;
    leave_device(layer);
    sets_destroy(layer);
    free(layer);
}

const qk_geometry *qk_layer_geometry(const qk_layer *layer) { return &layer->geometry; }

int64_t qk_layer_rows(const qk_layer *layer, qk_set set) {
    int64_t rows = 0;
    for (int64_t phase = 0; phase < qk_phase_count(layer, set); phase++) {
        const qk_sums *s = &layer->sets[set][phase];
        rows += s->rows + (layer->keeps_rows ? s->used : 0);
    }
    return rows;
}

static qk_status leave_own_form(qk_layer *layer);
static qk_status take_one_phase(qk_layer *layer);

/* ---- feeding --------------------------------------------------------------------------------- */

static qk_status flush(qk_layer *layer, qk_pool *pool) {
    for (int set = 0; set < 2 && !layer->keeps_rows; set++)
        for (int64_t phase = 0; phase < qk_phase_count(layer, set); phase++)
            QK_TRY(qk_layer_add_panel(layer, &layer->sets[set][phase], pool));
    return layer->on_device.active ? qk_device_moments_collect(layer) : QK_OK;
}

/* Brings the batch to the device, if that is where it goes. Where the device has too little memory for it, what is
 * there comes back, and the processor goes on. The device is taken. */
static qk_status bring_batch(qk_layer *layer, qk_device_batch batch, qk_pool *pool) {
    qk_device *device = layer->on_device.device;
    if (!layer->on_device.active) return QK_OK;
    const qk_status status = qk_device_moments_begin(layer, batch);
    if (status != QK_E_DEVICE_NOMEM) return status;
    qk_device_forgive(device);
    const qk_status flushed = flush(layer, pool);
    qk_device_moments_leave(layer);
    layer->on_device.refused = true;
    return flushed;
}

/* The first data decides what panels hold, and whether they keep it. Where bytes of another kind follow, panels of
 * floats take their place. */
static qk_status begin(qk_layer *layer, const qk_extent *e, const qk_tensor *x, qk_pool *pool) {
    qk_affine affine;
    const bool as_bytes = qk_bytes_of(x, &affine);
    const bool same = affine.scale == layer->affine.scale && affine.zero_point == layer->affine.zero_point;
    if (layer->begun && (!layer->as_bytes || (as_bytes && same))) return QK_OK;
    if (layer->begun && layer->keeps_rows) return qk_kept_rows_as_floats(layer);
    if (layer->begun) {
        QK_TRY(flush(layer, pool));
        QK_TRY(leave_own_form(layer));
    } else {
        layer->as_bytes = as_bytes && qk_layer_rows(layer, QK_FITTED) + qk_layer_rows(layer, QK_HELD_OUT) == 0;
        layer->affine = affine;
    }
    int64_t kept[2] = {0};
    if (!layer->begun && layer->choice.kept > 0) layer->keeps_rows = qk_few_rows(layer, e->positions, kept);
    if (layer->keeps_rows && layer->phases.count > 1) QK_TRY(take_one_phase(layer));
    for (int set = 0; set < 2; set++)
        for (int64_t phase = 0; phase < qk_phase_count(layer, set); phase++) {
            if (!layer->keeps_rows) QK_TRY(qk_sums_allocate(&layer->sets[set][phase], layer));
            QK_TRY(panels_init(&layer->sets[set][phase], layer, layer->keeps_rows ? kept[set] : 0));
        }
    layer->on_device.active = layer->on_device.device && !layer->keeps_rows && layer->phases.count == 1;
    layer->begun = true;
    return QK_OK;
}

qk_status qk_layer_feed(qk_layer *layer, const qk_tensor *x, const qk_tensor *y, qk_pool *pool) {
    qk_extent e;
    QK_TRY(layer->failed);
    if (layer->with_target != (y != NULL)) return QK_E_ARG;
    QK_TRY(qk_extent_of(&layer->geometry, x, y, &e));
    if (e.positions == 0 && e.x_sample > 0) return QK_E_SHAPE;
    if (e.positions == 0) { /* nothing was detected, say: samples without rows, which have their turn all the same */
        layer->next_sample += e.samples;
        return QK_OK;
    }
    qk_device *device = layer->on_device.device;
    if (device) qk_device_take(device);
    layer->failed = begin(layer, &e, x, pool);
    if (layer->failed == QK_OK) layer->failed = bring_batch(layer, (qk_device_batch){x, y}, pool);
    if (layer->failed == QK_OK) layer->failed = qk_feed_rows(layer, &(qk_fed_batch){&e, x, y, pool});
    const qk_status of_device = device ? qk_device_release(device) : QK_OK;
    if (layer->failed == QK_OK) layer->failed = of_device;
    return layer->failed;
}

qk_status qk_layer_extent(const qk_layer *layer, const qk_tensor *x, int64_t *samples, int64_t *positions) {
    qk_extent e;
    QK_TRY(qk_extent_of(&layer->geometry, x, NULL, &e));
    *samples = e.samples;
    *positions = e.positions;
    return QK_OK;
}

qk_status qk_layer_flush(qk_layer *layer, qk_pool *pool) {
    qk_device *device = layer->on_device.device;
    if (device) qk_device_take(device);
    const qk_status status = flush(layer, pool), of_device = device ? qk_device_release(device) : QK_OK;
    return status == QK_OK ? of_device : status;
}

void qk_layer_use_device(qk_layer *layer, qk_device *device) { layer->on_device.device = device; }

qk_device_use qk_layer_device_use(const qk_layer *layer) {
    if (layer->on_device.refused) return QK_DEVICE_IS_FULL;
    if (!layer->on_device.device) return QK_NO_DEVICE;
    if (layer->on_device.active) return QK_ON_DEVICE;
    return layer->phases.count > 1 ? QK_DEVICE_HAS_NO_PHASES : QK_DEVICE_HAS_NO_ROWS;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* A line of K inputs += a line of a phase's K', divided. Whole lines where the phase has all taps. */
static void add_line(double *to, const double *from, const qk_geometry *g, const qk_sums *s, double divisor) {
    if (!s->which) {
        for (int64_t k = 0; k < g->inputs; k++) to[k] += from[k] / divisor;
        return;
    }
    const int64_t all = tap_count(g), taps = s->taps;
    for (int64_t c = 0; c * all < g->inputs; c++)
        for (int64_t t = 0; t < taps; t++) to[c * all + s->which[t]] += from[c * taps + t] / divisor;
}

/* Line i of G, of all groups: the real values, right of the diagonal too. line (K'). */
static void gram_line(double *line, const qk_layer *of, const qk_sums *from, int64_t i) {
    const int64_t K = from->inputs, group = i / K;
    const double *gram = from->gram + group * K * K, *sum = from->sum_x + group * K;
    for (int64_t j = 0, k = i % K; j < K; j++) line[j] = j <= k ? gram[k * K + j] : gram[j * K + k];
    if (!of->as_bytes) return;
    /* sum (a - z)(b - z) of sum a (b - 128), where the line of a is not above that of b */
    const double z = of->affine.zero_point, n = (double)from->rows, scale = of->affine.scale;
    for (int64_t j = 0, k = i % K; j < K; j++) {
        const double a = sum[j <= k ? k : j], b = sum[j <= k ? j : k];
        line[j] = scale * scale * (line[j] + (128 - z) * a - z * b + n * z * z);
    }
}

static void cross_line(double *line, const qk_layer *of, const qk_sums *from, int64_t output) {
    const double scale = of->as_bytes ? of->affine.scale : 1;
    for (int64_t k = 0; k < from->inputs; k++) line[k] = scale * from->cross[output * from->inputs + k];
}

static void sum_line(double *line, const qk_layer *of, const qk_sums *from, int64_t group) {
    const double scale = of->as_bytes ? of->affine.scale : 1;
    const double zeros = of->as_bytes ? (double)from->rows * of->affine.zero_point : 0;
    for (int64_t k = 0; k < from->inputs; k++) line[k] = scale * (from->sum_x[group * from->inputs + k] - zeros);
}

/* Adds the sums of a phase of `of`, divided: each goes where its taps belong among all. line (K'): scratch. */
static void add_sums(const qk_sums *to, const qk_layer *of, const qk_sums *from, double divisor, double *line) {
    const qk_geometry *g = &of->geometry;
    const int64_t K = g->inputs, outputs = of->with_target ? g->groups * g->outputs : 0, taps = from->taps;
    for (int64_t i = 0; i < g->groups * from->inputs; i++) {
        const int64_t at = from->which ? i / taps * tap_count(g) + from->which[i % taps] : i;
        gram_line(line, of, from, i);
        add_line(to->gram + at * K, line, g, from, divisor);
    }
    for (int64_t i = 0; i < g->groups; i++) {
        sum_line(line, of, from, i);
        add_line(to->sum_x + i * K, line, g, from, divisor);
    }
    for (int64_t o = 0; o < outputs; o++) {
        cross_line(line, of, from, o);
        add_line(to->cross + o * K, line, g, from, divisor);
        to->sum_y[o] += from->sum_y[o] / divisor;
        to->power[o] += from->power[o] / divisor;
    }
}

/* Adds another layer, whatever its phases, to one that has one phase. */
static qk_status add_layer(qk_layer *layer, const qk_layer *other) {
    double *line = QK_NEW(double, other->geometry.inputs);
    if (!line) return QK_E_NOMEM;
    for (int set = 0; set < 2; set++)
        for (int64_t phase = 0; phase < qk_phase_count(other, set); phase++) {
            if (other->sets[set][phase].rows == 0) continue; /* maybe without sums */
            add_sums(layer->sets[set], other, &other->sets[set][phase], 1, line);
            layer->sets[set]->rows += other->sets[set][phase].rows;
        }
    free(line);
    return QK_OK;
}

/* Neither phases nor bytes of another layer need be the same: all becomes one, of real values. The geometry stays
 * untouched, as others may read it meanwhile. */
static qk_status leave_own_form(qk_layer *layer) {
    qk_layer whole = *layer;
    whole.phases = (qk_phases){1, 1, {1, 1, 1}};
    whole.begun = whole.as_bytes = false;
    for (int set = 0; set < 2; set++) whole.sets[set] = NULL;
    QK_TRY(sets_init(&whole));
    qk_status status = QK_OK;
    for (int set = 0; set < 2 && whole.sets[set] && status == QK_OK; set++)
        status = qk_sums_allocate(whole.sets[set], &whole);
    if (status == QK_OK) status = add_layer(&whole, layer);
    sets_destroy(status == QK_OK ? layer : &whole);
    if (status != QK_OK) return status;
    layer->phases = whole.phases;
    layer->begun = layer->as_bytes = false;
    for (int set = 0; set < 2; set++) layer->sets[set] = whole.sets[set];
    return QK_OK;
}

/* Gives a layer without data one phase: rows that are kept have all taps. */
static qk_status take_one_phase(qk_layer *layer) {
    sets_destroy(layer);
    layer->phases = (qk_phases){1, 1, {1, 1, 1}};
    return sets_init(layer);
}

static bool keep_together(const qk_layer *layer, const qk_layer *other) {
    const int64_t rows = qk_layer_rows(layer, QK_FITTED) + qk_layer_rows(other, QK_FITTED);
    return layer->keeps_rows && other->keeps_rows && (layer->choice.thinned || rows <= layer->choice.kept);
}

qk_status qk_layer_join(qk_layer *layer, qk_layer *other, qk_pool *pool) {
    const qk_geometry *g = &layer->geometry, *h = &other->geometry;
    if (layer == other || g->groups != h->groups || g->inputs != h->inputs || g->outputs != h->outputs ||
        layer->with_target != other->with_target || !layer->choice.holdout != !other->choice.holdout)
        return QK_E_ARG;
    QK_TRY(qk_layer_flush(layer, pool));
    QK_TRY(qk_layer_flush(other, pool));
    if (keep_together(layer, other)) return qk_kept_rows_join(layer, other);
    QK_TRY(qk_layer_make_moments(layer, pool));
    QK_TRY(qk_layer_make_moments(other, pool));
    if (!layer->begun || layer->phases.count > 1 || layer->as_bytes) QK_TRY(leave_own_form(layer));
    return add_layer(layer, other);
}

qk_status qk_layer_moments(const qk_layer *layer, qk_set set, double *gram, double *cross, double *mean_x,
                           double *mean_y, double *power) {
    const qk_geometry *g = &layer->geometry;
    const int64_t inputs = g->groups * g->inputs, outputs = layer->with_target ? g->groups * g->outputs : 0;
    const double rows = (double)qk_layer_rows(layer, set);
    const qk_sums to = {.gram = gram, .cross = cross, .sum_x = mean_x, .sum_y = mean_y, .power = power};
    double *arrays[] = {gram, mean_x, cross, mean_y, power};
    const int64_t sizes[] = {inputs * g->inputs, inputs, outputs * g->inputs, outputs, outputs};
    if (layer->keeps_rows) return QK_E_ARG;
    double *line = QK_NEW(double, g->inputs);
    if (!line) return QK_E_NOMEM;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        if (sizes[i] > 0) memset(arrays[i], 0, (size_t)sizes[i] * sizeof **arrays);
    for (int64_t phase = 0; phase < qk_phase_count(layer, set); phase++)
        add_sums(&to, layer, &layer->sets[set][phase], rows, line);
    free(line);
    return QK_OK;
}

qk_status qk_layer_mean_input(const qk_layer *layer, qk_set set, double *mean_x) {
    const qk_geometry *g = &layer->geometry;
    const int64_t K = g->inputs, rows = qk_layer_rows(layer, set);
    if (rows == 0) return QK_E_NO_ROWS;
    if (layer->keeps_rows) return qk_kept_mean(layer, set, mean_x);
    double *line = QK_NEW(double, K);
    if (!line) return QK_E_NOMEM;
    memset(mean_x, 0, (size_t)(g->groups * K) * sizeof *mean_x);
    for (int64_t phase = 0; phase < qk_phase_count(layer, set); phase++)
        for (int64_t group = 0; group < g->groups; group++) {
            const qk_sums *s = &layer->sets[set][phase];
            if (s->rows == 0) continue;
            sum_line(line, layer, s, group);
            add_line(mean_x + group * K, line, g, s, (double)rows);
        }
    free(line);
    return QK_OK;
}
