#include "moments/row_feed.h"

#include <stdlib.h>

#include "base/memory.h"
#include "base/pool.h"
#include "moments/kept_rows.h"
#include "moments/row_choice.h"
#include "ops/panel.h"

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

static void fill_panels(const qk_layer *layer, qk_sums *s, const qk_fed_batch *b) {
    const qk_extent *e = b->e;
    const int64_t count = s->x_rows.count;
    qk_row_table_seal(&s->x_rows);
    fill_context c = {
        .x = {s->x, s->capacity, s->used, b->x, e->x_channel, &s->x_rows, s->bytes},
        .x_channels = e->channels,
        .x_block = channels_per_task(count * s->x_rows.taps),
    };
    c.x_tasks = qk_ceil_div(e->channels, c.x_block);
    int64_t tasks = c.x_tasks;
    if (b->y) {
        qk_row_table_seal(&s->y_rows);
        c.y = (qk_panel_fill_job){s->y, s->capacity, s->used, b->y, e->y_output, &s->y_rows, NULL};
        c.y_channels = layer->geometry.groups * layer->geometry.outputs;
        c.y_block = channels_per_task(count);
        tasks += qk_ceil_div(c.y_channels, c.y_block);
    }
    qk_pool_run(b->pool, fill_task, &c, tasks);
}

/* Cuts the waiting rows of a phase from the batch; adds the panel to the sums when it is full. */
static qk_status cut_rows(qk_layer *layer, qk_sums *s, const qk_fed_batch *b) {
    const int64_t count = s->x_rows.count;
    if (count == 0) return QK_OK;
    if (layer->on_device.active)
        qk_device_moments_cut(layer, s, (qk_device_batch){b->x, b->y}, b->e);
    else
        fill_panels(layer, s, b);
    s->used += count;
    s->x_rows.count = s->y_rows.count = 0;
    return s->used == s->capacity && !layer->keeps_rows ? qk_layer_add_panel(layer, s, b->pool) : QK_OK;
}

/* Output positions of one sample. */
typedef struct {
    int64_t sample, *at, n;
} places;

/* Queues positions of one phase, cutting whenever the panel or the table would be full. */
static qk_status add_rows(qk_layer *layer, qk_sums *s, const qk_fed_batch *b, places p) {
    while (p.n > 0) {
        if (layer->keeps_rows && s->used == s->capacity) QK_TRY(qk_make_room(layer, s, b->pool));
        const int64_t room = qk_smaller(s->capacity - s->used, s->x_rows.capacity) - s->x_rows.count;
        int64_t seen = qk_smaller(p.n, room), taken = seen;
        if (layer->keeps_rows) seen = qk_take_rows(s, p.at, p.n, room, &taken);
        qk_row_table_add_inputs(&s->x_rows, &layer->geometry, b->e, p.sample, p.at, taken);
        if (b->y) qk_row_table_add_outputs(&s->y_rows, b->e, p.sample, p.at, taken);
        p.at += seen;
        p.n -= seen;
        if (taken == room) QK_TRY(cut_rows(layer, s, b));
    }
    return QK_OK;
}

/* The chosen positions of a sample on their way to the phases. */
typedef struct {
    int64_t *rows;           /* (rows per sample) */
    int64_t *order;          /* (runs of a sample) */
    qk_phase_order by_phase; /* of as many rows */
} row_scratch;

static qk_status add_set(qk_layer *layer, qk_set set, const qk_fed_batch *b, places p, const qk_phase_order *order) {
    qk_sums *sums = layer->sets[set];
    if (p.n == 0) return QK_OK;
    if (layer->phases.count == 1) return add_rows(layer, sums, b, p);
    qk_sort_by_phase(&layer->phases, &layer->geometry, b->e, p.at, p.n, order);
    for (int64_t phase = 0, first = 0; phase < layer->phases.count; first = order->ends[phase++])
        QK_TRY(add_rows(layer, &sums[phase], b, (places){p.sample, order->sorted + first, order->ends[phase] - first}));
    return QK_OK;
}

static qk_status add_samples(qk_layer *layer, const qk_fed_batch *b, const row_scratch *s) {
    for (int64_t sample = 0; sample < b->e->samples; sample++) {
        int64_t fitted;
        const int64_t n =
            qk_choose_rows(&layer->choice, layer->next_sample++, b->e->positions, s->rows, s->order, &fitted);
        QK_TRY(add_set(layer, QK_FITTED, b, (places){sample, s->rows, fitted}, &s->by_phase));
        QK_TRY(add_set(layer, QK_HELD_OUT, b, (places){sample, s->rows + fitted, n - fitted}, &s->by_phase));
    }
    for (int set = 0; set < 2; set++)
        for (int64_t phase = 0; phase < qk_phase_count(layer, set); phase++)
            QK_TRY(cut_rows(layer, &layer->sets[set][phase], b));
    return QK_OK;
}

qk_status qk_feed_rows(qk_layer *layer, const qk_fed_batch *b) {
    const int64_t most = qk_rows_per_sample(&layer->choice, b->e->positions), phases = layer->phases.count;
    int64_t *scratch = QK_NEW(int64_t, 3 * most + phases + qk_ceil_div(b->e->positions, QK_RUN));
    if (!scratch) return QK_E_NOMEM;
    const row_scratch s = {
        .rows = scratch,
        .order = scratch + 3 * most + phases,
        .by_phase = {.sorted = scratch + most, .scratch = scratch + 2 * most, .ends = scratch + 3 * most},
    };
    const qk_status status = add_samples(layer, b, &s);
    free(scratch);
    return status;
}
