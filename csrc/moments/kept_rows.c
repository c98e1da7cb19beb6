#include "moments/kept_rows.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/kernels.h"
#include "moments/row_choice.h"

static int64_t whole_blocks(int64_t rows) { return qk_ceil_div(qk_larger(rows, 1), QK_PANEL_BLOCK) * QK_PANEL_BLOCK; }

bool qk_few_rows(const qk_layer *layer, int64_t positions, int64_t capacity[2]) {
    const qk_row_choice *c = &layer->choice;
    int64_t planned[2];
    qk_planned_rows(c, positions, planned);
    for (int set = 0; set < 2; set++) capacity[set] = whole_blocks(qk_smaller(planned[set], c->kept));
    return c->thinned || planned[QK_FITTED] <= c->kept;
}

int64_t qk_take_rows(qk_sums *s, int64_t *positions, int64_t n, int64_t room, int64_t *taken) {
    int64_t seen = 0;
    for (*taken = 0; seen < n && *taken < room; seen++)
        if (s->offered++ % s->stride == 0) positions[(*taken)++] = positions[seen];
    return seen;
}

static int64_t input_lines(const qk_layer *layer) { return layer->geometry.groups * layer->geometry.inputs; }
static int64_t output_lines(const qk_layer *layer) {
    return layer->with_target ? layer->geometry.groups * layer->geometry.outputs : 0;
}

/* Keeps the rows 0, 2, 4, ... */
static void thin(const qk_layer *layer, qk_sums *s) {
    const int64_t left = qk_ceil_div(s->used, 2), inputs = input_lines(layer), outputs = output_lines(layer);
    for (int64_t line = 0; line < inputs; line++)
        for (int64_t i = 0, at = line * s->capacity; i < left; i++)
            if (s->bytes)
                s->bytes[at + i] = s->bytes[at + 2 * i];
            else
                s->x[at + i] = s->x[at + 2 * i];
    for (int64_t line = 0; line < outputs; line++)
        for (int64_t i = 0, at = line * s->capacity; i < left; i++) s->y[at + i] = s->y[at + 2 * i];
    s->used = left;
    s->stride *= 2;
}

qk_status qk_layer_make_moments(qk_layer *layer, qk_pool *pool) {
    if (!layer->keeps_rows) return QK_OK;
    layer->keeps_rows = false;
    for (int set = 0; set < 2 && layer->sets[set]; set++) {
        qk_sums *s = layer->sets[set];
        QK_TRY(qk_sums_allocate(s, layer));
        QK_TRY(qk_layer_add_panel(layer, s, pool));
        QK_TRY(qk_panel_resize(s, layer, qk_panel_capacity(layer, s)));
    }
    return QK_OK;
}

qk_status qk_make_room(qk_layer *layer, qk_sums *s, qk_pool *pool) {
    const int64_t most = whole_blocks(layer->choice.kept);
    if (s->capacity < most) return qk_panel_resize(s, layer, qk_smaller(2 * s->capacity, most));
    if (!layer->choice.thinned) return qk_layer_make_moments(layer, pool);
    thin(layer, s);
    return QK_OK;
}

void qk_kept_line(const qk_layer *layer, const qk_sums *s, int64_t line, float *to) {
    const int64_t at = line * s->capacity;
    if (s->bytes)
        qk_kernels_get()->dequantize_u8(to, s->bytes + at, (size_t)s->used, layer->affine);
    else
        memcpy(to, s->x + at, (size_t)s->used * sizeof *to);
}

qk_status qk_kept_mean(const qk_layer *layer, qk_set set, double *mean_x) {
    const qk_sums *s = layer->sets[set];
    float *line = QK_NEW(float, s->used);
    if (!line) return QK_E_NOMEM;
    for (int64_t k = 0; k < input_lines(layer); k++) {
        qk_kept_line(layer, s, k, line);
        mean_x[k] = qk_kernels_get()->exact_sum(line, (size_t)s->used) / (double)s->used;
    }
    free(line);
    return QK_OK;
}

qk_status qk_kept_rows_as_floats(qk_layer *layer) {
    const int64_t lines = input_lines(layer);
    if (!layer->as_bytes) return QK_OK;
    for (int set = 0; set < 2 && layer->sets[set]; set++) {
        qk_sums *s = layer->sets[set];
        float *x = QK_NEW(float, lines, s->capacity);
        if (!x) return QK_E_NOMEM;
        for (int64_t line = 0; line < lines; line++) qk_kept_line(layer, s, line, x + line * s->capacity);
        free(s->bytes);
        s->bytes = NULL;
        s->x = x;
    }
    layer->as_bytes = false;
    return QK_OK;
}

/* Appends every step-th row of `from` (of another layer) to `to`, which has the room and floats. */
static qk_status append(qk_sums *to, const qk_layer *layer, const qk_sums *from, const qk_layer *other, int64_t step) {
    const int64_t n = qk_ceil_div(from->used, step), inputs = input_lines(layer), outputs = output_lines(layer);
    float *line = QK_NEW(float, from->used);
    if (!line) return QK_E_NOMEM;
    for (int64_t k = 0; k < inputs; k++) {
        qk_kept_line(other, from, k, line);
        for (int64_t i = 0; i < n; i++) to->x[k * to->capacity + to->used + i] = line[i * step];
    }
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < n; i++) to->y[o * to->capacity + to->used + i] = from->y[o * from->capacity + i * step];
    free(line);
    to->used += n;
    return QK_OK;
}

static qk_status join_set(qk_layer *layer, qk_sums *to, const qk_layer *other, const qk_sums *from) {
    while (to->stride < from->stride) thin(layer, to);
    const int64_t step = to->stride / from->stride, together = to->used + qk_ceil_div(from->used, step);
    if (to->capacity < together) QK_TRY(qk_panel_resize(to, layer, whole_blocks(together)));
    QK_TRY(append(to, layer, from, other, step));
    to->offered += from->offered;
    while (to->used > layer->choice.kept) thin(layer, to);
    return QK_OK;
}

qk_status qk_kept_rows_join(qk_layer *layer, const qk_layer *other) {
    QK_TRY(qk_kept_rows_as_floats(layer));
    for (int set = 0; set < 2 && layer->sets[set]; set++)
        QK_TRY(join_set(layer, layer->sets[set], other, other->sets[set]));
    return QK_OK;
}
