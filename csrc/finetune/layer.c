/* A layer's data: from batches through chosen rows and panels to moments. */
#include "finetune/layer.h"

#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "finetune/row_choice.h"

/* Rows per panel: a panel of about half a MiB stays in the second-level cache; a multiple of the panel's block. */
static int64_t panel_capacity(const qk_geometry *g) {
    const int64_t lines = g->groups * (g->inputs + g->outputs), floats = 1 << 17;
    int64_t rows = floats / lines / QK_PANEL_BLOCK * QK_PANEL_BLOCK;
    if (rows < 128) rows = 128;
    if (rows > 2048) rows = 2048;
    return rows;
}

static qk_status sums_init(qk_sums *s, const qk_layer *layer) {
    const qk_geometry *g = &layer->geometry;
    const int64_t inputs = g->groups * g->inputs, outputs = layer->with_target ? g->groups * g->outputs : 0;
    int64_t taps = 1;
    for (int i = 0; i < g->spatial; i++) taps *= g->kernel[i];
    s->x = QK_NEW(float, inputs * layer->capacity);
    s->y = QK_NEW(float, outputs * layer->capacity);
    s->gram = QK_NEW(double, inputs * g->inputs);
    s->cross = QK_NEW(double, outputs * g->inputs);
    s->sum_x = QK_NEW(double, inputs);
    s->sum_y = QK_NEW(double, outputs);
    s->power = QK_NEW(double, outputs);
    if (!s->x || !s->y || !s->gram || !s->cross || !s->sum_x || !s->sum_y || !s->power) return QK_E_NOMEM;
    QK_TRY(qk_row_table_init(&s->x_rows, taps, layer->capacity));
    return qk_row_table_init(&s->y_rows, 1, layer->capacity);
}

qk_status qk_layer_new(qk_layer **out, const qk_geometry *geometry, const qk_row_choice *rows, bool with_target) {
    *out = NULL;
    if (!qk_geometry_is_sane(geometry) || rows->samples < 1 || rows->max_rows < 1 || rows->holdout < 0 ||
        rows->holdout == 1)
        return QK_E_ARG;
    qk_layer *layer = QK_NEW(qk_layer, 1);
    if (!layer) return QK_E_NOMEM;
    *layer = (qk_layer){.geometry = *geometry, .choice = *rows, .with_target = with_target};
    layer->capacity = panel_capacity(geometry);
    for (int set = 0; set < (rows->holdout ? 2 : 1); set++)
        if (sums_init(&layer->sets[set], layer) != QK_OK) {
            qk_layer_free(layer);
            return QK_E_NOMEM;
        }
    *out = layer;
    return QK_OK;
}

void qk_layer_free(qk_layer *layer) {
    if (!layer) return;
    for (int set = 0; set < 2; set++) {
        qk_sums *s = &layer->sets[set];
        void *arrays[] = {s->x, s->y, s->gram, s->cross, s->sum_x, s->sum_y, s->power};
        for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
        qk_row_table_destroy(&s->x_rows);
        qk_row_table_destroy(&s->y_rows);
    }
    free(layer);
}

const qk_geometry *qk_layer_geometry(const qk_layer *layer) { return &layer->geometry; }
int64_t qk_layer_rows(const qk_layer *layer, qk_set set) { return layer->sets[set].rows; }

/* ---- feeding --------------------------------------------------------------------------------- */

typedef struct {
    qk_panel_fill_job x, y;
    int64_t x_channels, y_channels, x_block, y_block, x_tasks;
} fill_context;

static void fill_task(void *context, int64_t task, int worker) {
    (void)worker;
    const fill_context *c = context;
    const bool is_x = task < c->x_tasks;
    const int64_t block = is_x ? c->x_block : c->y_block, channels = is_x ? c->x_channels : c->y_channels;
    const int64_t c0 = (is_x ? task : task - c->x_tasks) * block;
    qk_panel_fill(is_x ? &c->x : &c->y, c0, c0 + block < channels ? c0 + block : channels);
}

/* Channels per task: enough work to be worth waking a thread. */
static int64_t channels_per_task(int64_t values_per_channel) {
    const int64_t n = 16384 / (values_per_channel > 0 ? values_per_channel : 1);
    return n < 1 ? 1 : n;
}

/* Cuts the waiting rows of a set from the batch; adds the panel to the sums when it is full. */
static qk_status cut_rows(qk_layer *layer, qk_set set, const qk_extent *e, const qk_tensor *x, const qk_tensor *y,
                          qk_pool *pool) {
    qk_sums *s = &layer->sets[set];
    const int64_t count = s->x_rows.count;
    if (count == 0) return QK_OK;
    qk_row_table_seal(&s->x_rows);
    fill_context c = {
        .x = {s->x, layer->capacity, s->used, x, e->x_channel, &s->x_rows},
        .x_channels = e->channels,
        .x_block = channels_per_task(count * e->taps),
    };
    c.x_tasks = (e->channels + c.x_block - 1) / c.x_block;
    int64_t tasks = c.x_tasks;
    if (y) {
        qk_row_table_seal(&s->y_rows);
        c.y = (qk_panel_fill_job){s->y, layer->capacity, s->used, y, e->y_output, &s->y_rows};
        c.y_channels = layer->geometry.groups * layer->geometry.outputs;
        c.y_block = channels_per_task(count);
        tasks += (c.y_channels + c.y_block - 1) / c.y_block;
    }
    qk_pool_run(pool, fill_task, &c, tasks);
    s->used += count;
    s->x_rows.count = s->y_rows.count = 0;
    return s->used == layer->capacity ? qk_layer_add_panel(layer, set, pool) : QK_OK;
}

/* Queues n positions of one sample, cutting whenever the panel would be full. */
static qk_status add_rows(qk_layer *layer, qk_set set, const qk_extent *e, const qk_tensor *x, const qk_tensor *y,
                          int64_t sample, const int64_t *positions, int64_t n, qk_pool *pool) {
    qk_sums *s = &layer->sets[set];
    while (n > 0) {
        const int64_t room = layer->capacity - s->used - s->x_rows.count, m = n < room ? n : room;
        qk_row_table_add_inputs(&s->x_rows, &layer->geometry, e, sample, positions, m);
        if (y) qk_row_table_add_outputs(&s->y_rows, e, sample, positions, m);
        positions += m;
        n -= m;
        if (m == room) QK_TRY(cut_rows(layer, set, e, x, y, pool));
    }
    return QK_OK;
}

qk_status qk_layer_feed(qk_layer *layer, const qk_tensor *x, const qk_tensor *y, qk_pool *pool) {
    qk_extent e;
    if (layer->with_target != (y != NULL)) return QK_E_ARG;
    QK_TRY(qk_extent_of(&layer->geometry, x, y, &e));
    if (e.positions == 0) return QK_E_SHAPE;
    int64_t *rows = QK_NEW(int64_t, qk_rows_per_sample(&layer->choice, e.positions));
    int64_t *order = QK_NEW(int64_t, (e.positions + QK_RUN - 1) / QK_RUN);
    qk_status status = rows && order ? QK_OK : QK_E_NOMEM;
    for (int64_t sample = 0; sample < e.samples && status == QK_OK; sample++) {
        int64_t fitted;
        const int64_t n = qk_choose_rows(&layer->choice, layer->next_sample++, e.positions, rows, order, &fitted);
        status = add_rows(layer, QK_FITTED, &e, x, y, sample, rows, fitted, pool);
        if (status == QK_OK && n > fitted)
            status = add_rows(layer, QK_HELD_OUT, &e, x, y, sample, rows + fitted, n - fitted, pool);
    }
    for (int set = 0; set < 2 && status == QK_OK; set++) status = cut_rows(layer, (qk_set)set, &e, x, y, pool);
    free(rows);
    free(order);
    return status;
}

qk_status qk_layer_flush(qk_layer *layer, qk_pool *pool) {
    for (int set = 0; set < 2; set++) QK_TRY(qk_layer_add_panel(layer, (qk_set)set, pool));
    return QK_OK;
}

static void add(double *to, const double *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

qk_status qk_layer_join(qk_layer *layer, const qk_layer *other) {
    const qk_geometry *g = &layer->geometry, *h = &other->geometry;
    if (layer == other || g->groups != h->groups || g->inputs != h->inputs || g->outputs != h->outputs ||
        layer->with_target != other->with_target || !layer->choice.holdout != !other->choice.holdout)
        return QK_E_ARG;
    const int64_t inputs = g->groups * g->inputs, outputs = layer->with_target ? g->groups * g->outputs : 0;
    for (int set = 0; set < (layer->choice.holdout ? 2 : 1); set++) {
        qk_sums *to = &layer->sets[set];
        const qk_sums *from = &other->sets[set];
        if (to->used || from->used) return QK_E_ARG;
        add(to->gram, from->gram, inputs * g->inputs);
        add(to->cross, from->cross, outputs * g->inputs);
        add(to->sum_x, from->sum_x, inputs);
        add(to->sum_y, from->sum_y, outputs);
        add(to->power, from->power, outputs);
        to->rows += from->rows;
    }
    return QK_OK;
}

static void divide(double *to, const double *from, int64_t n, double rows) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i] / rows;
}

void qk_layer_moments(const qk_layer *layer, qk_set set, double *gram, double *cross, double *mean_x, double *mean_y,
                      double *power) {
    const qk_geometry *g = &layer->geometry;
    const qk_sums *s = &layer->sets[set];
    const double rows = (double)s->rows;
    divide(gram, s->gram, g->groups * g->inputs * g->inputs, rows);
    divide(mean_x, s->sum_x, g->groups * g->inputs, rows);
    if (!layer->with_target) return;
    divide(cross, s->cross, g->groups * g->outputs * g->inputs, rows);
    divide(mean_y, s->sum_y, g->groups * g->outputs, rows);
    divide(power, s->power, g->groups * g->outputs, rows);
}
