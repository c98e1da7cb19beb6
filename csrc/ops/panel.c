#include "ops/panel.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/kernels.h"

qk_status qk_row_table_init(qk_row_table *t, int64_t taps, int64_t capacity) {
    *t = (qk_row_table){.taps = taps, .capacity = capacity};
    t->offsets = QK_NEW(int32_t, taps * capacity);
    t->runs = QK_NEW(int32_t, taps * capacity);
    t->coordinates = QK_NEW(int64_t, QK_MAX_SPATIAL * capacity);
    return t->offsets && t->runs && t->coordinates ? QK_OK : QK_E_NOMEM;
}

void qk_row_table_destroy(qk_row_table *t) {
    free(t->offsets);
    free(t->runs);
    free(t->coordinates);
    *t = (qk_row_table){0};
}

static void add_conv_inputs(qk_row_table *t, const qk_geometry *g, const qk_extent *e, int64_t base,
                            const int64_t *positions, int64_t n) {
    /* Each row's window corner once; the divisions cost more than all the taps. */
    for (int64_t r = 0; r < n; r++) {
        int64_t rest = positions[r];
        for (int i = g->spatial - 1; i >= 0; i--) {
            t->coordinates[i * t->capacity + r] = rest % e->out[i] * g->stride[i] - e->pad[i];
            rest /= e->out[i];
        }
    }
    for (int64_t tap = 0; tap < e->taps; tap++) {
        int32_t *row = t->offsets + tap * t->capacity + t->count;
        for (int64_t r = 0; r < n; r++) row[r] = (int32_t)base;
        int64_t scale = 1, rest = tap;
        for (int i = g->spatial - 1; i >= 0; i--) {
            const int64_t at = rest % g->kernel[i] * g->dilation[i], in = e->in[i];
            const int64_t *coordinate = t->coordinates + i * t->capacity;
            for (int64_t r = 0; r < n; r++) {
                const int64_t p = coordinate[r] + at;
                row[r] = row[r] < 0 || p < 0 || p >= in ? -1 : (int32_t)(row[r] + p * scale);
            }
            rest /= g->kernel[i];
            scale *= in;
        }
    }
}

void qk_row_table_add_inputs(qk_row_table *t, const qk_geometry *g, const qk_extent *e, int64_t sample,
                             const int64_t *positions, int64_t n) {
    const int64_t base = sample * e->x_sample;
    if (g->spatial > 0) {
        add_conv_inputs(t, g, e, base, positions, n);
    } else {
        for (int64_t r = 0; r < n; r++) t->offsets[t->count + r] = (int32_t)(base + positions[r] * g->inputs);
    }
    t->count += n;
}

void qk_row_table_add_outputs(qk_row_table *t, const qk_extent *e, int64_t sample, const int64_t *positions,
                              int64_t n) {
    const int64_t base = sample * e->y_sample;
    for (int64_t r = 0; r < n; r++) t->offsets[t->count + r] = (int32_t)(base + positions[r] * e->y_position);
    t->count += n;
}

void qk_row_table_seal(qk_row_table *t) {
    enum { B = QK_PANEL_BLOCK };
    for (int64_t tap = 0; tap < t->taps; tap++) {
        const int32_t *o = t->offsets + tap * t->capacity;
        int32_t *runs = t->runs + tap * t->capacity;
        for (int64_t block = t->count / B * B - B; block >= 0; block -= B) {
            bool rising = o[block] >= 0;
            for (int i = 1; i < B; i++) rising &= o[block + i] == o[block] + i;
            runs[block] = rising ? B : 0;
            if (rising && block + 2 * B <= t->count && o[block + B] == o[block] + B) runs[block] += runs[block + B];
        }
    }
}

/* One line of the panel. */
static void fill_line(float *restrict line, const qk_tensor *t, int64_t shift, const int32_t *offsets,
                      const int32_t *runs, int64_t count, const float *table) {
    const qk_kernels *kernels = qk_kernels_get();
    for (int64_t r = 0; r < count;) {
        if (r + QK_PANEL_BLOCK <= count && runs[r] > 0) {
            const int64_t from = shift + offsets[r];
            const size_t n = (size_t)runs[r];
            switch (t->dtype) {
            case QK_F32: memcpy(line + r, (const float *)t->data + from, n * sizeof(float)); break;
            case QK_U8: kernels->dequantize_u8(line + r, (const uint8_t *)t->data + from, n, t->affine); break;
            case QK_I8: kernels->dequantize_i8(line + r, (const int8_t *)t->data + from, n, t->affine); break;
            }
            r += (int64_t)n;
            continue;
        }
        const int64_t end = r + QK_PANEL_BLOCK < count ? r + QK_PANEL_BLOCK : count;
        if (t->dtype == QK_F32) {
            const float *x = (const float *)t->data + shift;
            for (; r < end; r++) line[r] = offsets[r] < 0 ? 0.0f : x[offsets[r]];
        } else {
            const uint8_t *x = (const uint8_t *)t->data + shift;
            for (; r < end; r++) line[r] = offsets[r] < 0 ? 0.0f : table[x[offsets[r]]];
        }
    }
}

void qk_panel_fill(const qk_panel_fill_job *job, int64_t c0, int64_t c1) {
    const qk_row_table *rows = job->rows;
    float table[256]; /* the real value of every byte */
    for (int i = 0; i < 256 && job->tensor->dtype != QK_F32; i++) {
        const int32_t q = job->tensor->dtype == QK_U8 ? i : (int8_t)i;
        table[i] = (float)(q - job->tensor->affine.zero_point) * job->tensor->affine.scale;
    }
    for (int64_t c = c0; c < c1; c++)
        for (int64_t tap = 0; tap < rows->taps; tap++) {
            float *line = job->panel + (c * rows->taps + tap) * job->capacity + job->column;
            fill_line(line, job->tensor, c * job->channel_stride, rows->offsets + tap * rows->capacity,
                      rows->runs + tap * rows->capacity, rows->count, table);
        }
}
