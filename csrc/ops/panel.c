#include "ops/panel.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/kernels.h"

qk_status qk_row_table_init(qk_row_table *t, int64_t taps, int64_t capacity) {
    *t = (qk_row_table){.taps = taps, .capacity = capacity};
    t->offsets = QK_NEW(int32_t, taps, capacity);
    t->runs = QK_NEW(int32_t, taps, capacity);
    t->padding = QK_NEW(int32_t, taps, capacity);
    t->padding_count = QK_NEW(int64_t, taps);
    t->coordinates = QK_NEW(int32_t, QK_MAX_SPATIAL, capacity);
    t->phases = QK_NEW(int32_t, QK_MAX_SPATIAL, capacity);
    const bool ok = t->offsets && t->runs && t->padding && t->padding_count && t->coordinates && t->phases;
    return ok ? QK_OK : QK_E_NOMEM;
}

void qk_row_table_destroy(qk_row_table *t) {
    free(t->offsets);
    free(t->runs);
    free(t->padding);
    free(t->padding_count);
    free(t->coordinates);
    free(t->phases);
    *t = (qk_row_table){0};
}

/* Tap k of output o sees the input
 *   Conv            o * stride + k * dilation - pad
 *   ConvTranspose   (o + pad - k * dilation) / stride where that divides: where both terms have the same remainder,
 *                   which is the phase of the row and of the tap; elsewhere the tap is padding. */
static void add_conv_inputs(qk_row_table *t, const qk_geometry *g, const qk_extent *e, int64_t base,
                            const int64_t *positions, int64_t n) {
    /* Each row's coordinates once; the divisions cost more than all the taps. */
    for (int64_t r = 0; r < n; r++) {
        int64_t rest = positions[r];
        for (int i = g->spatial - 1; i >= 0; i--) {
            const int64_t out = rest % e->out[i], at = i * t->capacity + r;
            t->coordinates[at] =
                (int32_t)(g->transposed ? (out + e->pad[i]) / g->stride[i] : out * g->stride[i] - e->pad[i]);
            if (g->transposed) t->phases[at] = (int32_t)((out + e->pad[i]) % g->stride[i]);
            rest /= e->out[i];
        }
    }
    for (int64_t line = 0; line < t->taps; line++) {
        int32_t *row = t->offsets + line * t->capacity + t->count;
        for (int64_t r = 0; r < n; r++) row[r] = (int32_t)base;
        uint32_t scale = 1;
        int64_t rest = t->which ? t->which[line] : line;
        for (int i = g->spatial - 1; i >= 0; i--) {
            const int64_t reach = rest % g->kernel[i] * g->dilation[i];
            const int32_t shift = (int32_t)(g->transposed ? -(reach / g->stride[i]) : reach);
            const int32_t phase = (int32_t)(reach % g->stride[i]);
            const uint32_t in = (uint32_t)e->in[i];
            const int32_t *coordinate = t->coordinates + i * t->capacity, *phases = t->phases + i * t->capacity;
            for (int64_t r = 0; r < n; r++) {
                const uint32_t p = (uint32_t)coordinate[r] + (uint32_t)shift, at = (uint32_t)row[r] + p * scale;
                row[r] = row[r] >= 0 && p < in ? (int32_t)at : -1;
            }
            for (int64_t r = 0; g->transposed && r < n; r++)
                if (phases[r] != phase) row[r] = -1;
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

static void find_runs(const int32_t *offsets, int64_t count, int32_t *runs) {
    enum { B = QK_PANEL_BLOCK };
    for (int64_t block = count / B * B - B; block >= 0; block -= B) {
        bool rising = true;
        for (int i = 1; i < B; i++) rising &= offsets[block + i] == offsets[block] + i;
        runs[block] = rising ? B : 0;
        if (rising && block + 2 * B <= count && offsets[block + B] == offsets[block] + B)
            runs[block] += runs[block + B];
    }
}

/* Notes the padding, and makes it go on from the row before where that can be read: runs are longer then. */
static int64_t seal_padding(int32_t *offsets, int64_t count, int32_t *padding) {
    int32_t last = -1, before = -1;
    int64_t n = 0;
    for (int64_t r = 0; r < count; r++) last = offsets[r] > last ? offsets[r] : last;
    for (int64_t r = 0; r < count; r++) {
        if (offsets[r] < 0) {
            padding[n++] = (int32_t)r;
            offsets[r] = before < last ? before + 1 : 0; /* anything that can be read */
        }
        before = offsets[r];
    }
    return n;
}

void qk_row_table_seal(qk_row_table *t) {
    for (int64_t tap = 0; tap < t->taps; tap++) {
        int32_t *offsets = t->offsets + tap * t->capacity;
        t->padding_count[tap] = seal_padding(offsets, t->count, t->padding + tap * t->capacity);
        find_runs(offsets, t->count, t->runs + tap * t->capacity);
    }
}

bool qk_bytes_of(const qk_tensor *t, qk_affine *affine) {
    *affine = t->affine;
    if (t->dtype == QK_I8) affine->zero_point += 128;
    return t->dtype != QK_F32 && affine->zero_point >= 0 && affine->zero_point <= UINT8_MAX;
}

static void copy_run(float *restrict to, const qk_tensor *t, int64_t from, size_t n) {
    switch (t->dtype) {
    case QK_F32: memcpy(to, (const float *)t->data + from, n * sizeof(float)); break;
    case QK_U8: qk_kernels_get()->dequantize_u8(to, (const uint8_t *)t->data + from, n, t->affine); break;
    case QK_I8: qk_kernels_get()->dequantize_i8(to, (const int8_t *)t->data + from, n, t->affine); break;
    }
}

/* Rows of a line that are filled in one go. */
typedef struct {
    int64_t first, count;
    bool is_run; /* their offsets rise by 1 each */
} segment;

/* The rows from `first` on: a run, or all up to the next one. */
static segment next_segment(const qk_row_table *rows, int64_t tap, int64_t first) {
    const int32_t *runs = rows->runs + tap * rows->capacity;
    const int64_t whole = rows->count / QK_PANEL_BLOCK * QK_PANEL_BLOCK; /* runs are known up to here */
    if (first < whole && runs[first] > 0) return (segment){first, runs[first], true};
    int64_t end = first;
    while (end < whole && runs[end] == 0) end += QK_PANEL_BLOCK;
    return (segment){first, (end < whole ? end : rows->count) - first, false};
}

/* One line of the panel: runs are copied, what lies between them is gathered, padding becomes zero. table (256): the
 * real value of every byte. */
static void fill_line(float *restrict line, const qk_panel_fill_job *job, int64_t shift, int64_t tap,
                      const float *table) {
    const qk_tensor *t = job->tensor;
    const qk_row_table *rows = job->rows;
    const int32_t *offsets = rows->offsets + tap * rows->capacity, *padding = rows->padding + tap * rows->capacity;
    for (segment s = {0}; s.first < rows->count; s.first += s.count) {
        s = next_segment(rows, tap, s.first);
        float *to = line + s.first;
        const int32_t *from = offsets + s.first;
        if (s.is_run)
            copy_run(to, t, shift + *from, (size_t)s.count);
        else if (t->dtype == QK_F32)
            qk_kernels_get()->gather_f32(to, (const float *)t->data + shift, from, (size_t)s.count);
        else
            qk_kernels_get()->gather_bytes(to, (const uint8_t *)t->data + shift, from, (size_t)s.count, table);
    }
    for (int64_t i = 0; i < rows->padding_count[tap]; i++) line[padding[i]] = 0;
}

/* fill_line does this for reals: here every value stays a byte, and padding becomes the zero point. */
static void fill_byte_line(uint8_t *restrict line, const qk_panel_fill_job *job, int64_t shift, int64_t tap,
                           uint8_t zero_point) {
    const qk_row_table *rows = job->rows;
    const uint8_t *data = (const uint8_t *)job->tensor->data + shift, flip = job->tensor->dtype == QK_I8 ? 0x80 : 0;
    const int32_t *offsets = rows->offsets + tap * rows->capacity, *padding = rows->padding + tap * rows->capacity;
    for (segment s = {0}; s.first < rows->count; s.first += s.count) {
        s = next_segment(rows, tap, s.first);
        uint8_t *to = line + s.first;
        const int32_t *from = offsets + s.first;
        if (s.is_run)
            memcpy(to, data + *from, (size_t)s.count);
        else
            for (int64_t i = 0; i < s.count; i++) to[i] = data[from[i]];
    }
    for (int64_t r = 0; r < rows->count && flip; r++) line[r] ^= flip;
    for (int64_t i = 0; i < rows->padding_count[tap]; i++) line[padding[i]] = zero_point;
}

void qk_panel_fill(const qk_panel_fill_job *job, int64_t c0, int64_t c1) {
    const qk_row_table *rows = job->rows;
    float table[256];
    qk_affine of_bytes;
    qk_bytes_of(job->tensor, &of_bytes);
    for (int i = 0; i < 256 && job->tensor->dtype != QK_F32 && job->panel; i++) {
        const int32_t q = job->tensor->dtype == QK_U8 ? i : (int8_t)i;
        table[i] = (float)(q - job->tensor->affine.zero_point) * job->tensor->affine.scale;
    }
    for (int64_t c = c0; c < c1; c++)
        for (int64_t tap = 0; tap < rows->taps; tap++) {
            const int64_t at = (c * rows->taps + tap) * job->capacity + job->column, shift = c * job->channel_stride;
            if (job->panel)
                fill_line(job->panel + at, job, shift, tap, table);
            else
                fill_byte_line(job->bytes + at, job, shift, tap, (uint8_t)of_bytes.zero_point);
        }
}
