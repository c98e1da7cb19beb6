#include "loss/winograd.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/sizes.h"
#include "kernels/kernels.h"

enum { TILE = 4, SEEN = 6, TAPS = 9, ELEMENTS = SEEN * SEEN };
enum { BLOCK = 32 }; /* outputs whose products are in memory at a time */

static int64_t tile_columns(const qk_training_data *d) { return qk_ceil_div(d->extent.out[1], TILE); }
static int64_t tile_rows(const qk_training_data *d) { return qk_ceil_div(d->extent.out[0], TILE); }

/* ---- plan ------------------------------------------------------------------------------------ */

static bool applies(const qk_training_data *d) {
    const qk_geometry *g = &d->geometry;
    bool fits = g->spatial == 2 && !g->transposed;
    for (int i = 0; i < 2 && fits; i++) fits = g->kernel[i] == 3 && g->stride[i] == 1 && g->dilation[i] == 1;
    return fits;
}

/* Nanoseconds for each weight, as measured on one core with AVX-512 for C and O from 3 to 512, images from 2x2 to 64x64
 * and batches of 1 to 32. im2col: products, and filling the panel. Winograd: transforms of filter and gradient;
 * products, and transforms of outputs, errors and inputs. Wherever it was slower than im2col this says so, and it
 * misses gains below 1.4 only. */
static bool pays(const qk_training_data *d, int64_t samples) {
    const double C = (double)(d->geometry.inputs / TAPS), O = (double)d->geometry.outputs;
    const double positions = (double)(samples * d->extent.positions);
    const double tiles = (double)(samples * tile_rows(d) * tile_columns(d));
    return 45 + tiles * (1.6 + 16 / C + 16 / O) < positions * (0.36 + 3 / O);
}

/* So many tiles that BLAS has something to do and the inputs stay in the second-level cache, and several parts. */
qk_winograd_plan qk_winograd_plan_of(const qk_training_data *d, int64_t samples) {
    enum { PARTS = 4, FEWEST_TILES = 16, MOST_TILES = 128, FEWEST_OUTPUTS = 16 };
    if (!applies(d) || !pays(d, samples)) return (qk_winograd_plan){0};
    const int64_t rows = tile_rows(d), columns = tile_columns(d), O = d->geometry.outputs;
    const int64_t tiles = qk_larger(FEWEST_TILES, qk_smaller(MOST_TILES, samples * rows * columns / PARTS));
    const int64_t each = qk_smaller(qk_ceil_div(tiles, columns), samples * rows); /* rows of tiles */
    const int64_t pieces = qk_ceil_div(rows, each), together = qk_larger(1, each / rows);
    const int64_t parts = d->geometry.groups * qk_ceil_div(samples, together) * pieces;
    return (qk_winograd_plan){
        .pays = true,
        .columns = each < rows ? each * TILE * d->extent.out[1] : together * d->extent.positions,
        .outputs = qk_smaller(O, qk_larger(FEWEST_OUTPUTS, qk_ceil_div(O, qk_ceil_div(PARTS, parts)))),
    };
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Between the beginnings of lines of n values: an odd number of cache lines, or 36 of them could fall on one another in
 * the first-level cache. */
static int64_t distance_of(int64_t n) { return (qk_ceil_div(n, 16) | 1) * 16; }

/* Sizes of a part. Tiles are cut from planes, one for each sample, of which a row has `width` and all have `size`
 * values. */
typedef struct {
    int64_t samples, rows, tiles; /* rows: of tiles, of a sample */
    int64_t in_width, in_size, out_width, out_size;
    int64_t count; /* outputs of a sample */
    bool exact;    /* tiles end where the image does, and so planes of outputs are what a line of outputs is */
} layout;

static layout layout_of(const qk_winograd *w, int64_t samples, int64_t count) {
    const int64_t W = w->data->extent.out[1], rows = qk_ceil_div(count, TILE * W);
    layout l = {.samples = samples, .rows = rows, .tiles = samples * rows * w->tile_columns, .count = count};
    l.in_width = TILE * w->tile_columns + SEEN - TILE;
    l.in_size = (TILE * rows + SEEN - TILE) * l.in_width;
    l.out_width = TILE * w->tile_columns;
    l.out_size = TILE * rows * l.out_width;
    l.exact = l.out_width == W && l.out_size == count;
    return l;
}

static layout layout_of_part(const qk_winograd *w, const qk_part *p) {
    return layout_of(w, p->last - p->first, p->count);
}

/* A worker's memory. */
typedef struct {
    float *inputs;      /* (C, 36, tiles): V */
    float *products;    /* (BLOCK, 36, tiles): U_f V_f; then the errors, transformed */
    float *derivatives; /* (36, distance_of(BLOCK * C)): by U */
    float *out, *in;    /* planes of one output, of one channel */
    int32_t *out_at, *in_at;
} scratch;

static int64_t block_of(const qk_winograd *w) { return qk_smaller(w->outputs, BLOCK); }

static scratch scratch_of(const qk_winograd *w, int worker) {
    scratch s = {.inputs = w->scratch + worker * w->scratch_size, .out_at = w->places + worker * 2 * w->most_tiles};
    s.products = s.inputs + w->channels * ELEMENTS * w->most_tiles;
    s.derivatives = s.products + block_of(w) * ELEMENTS * w->most_tiles;
    s.out = s.derivatives + ELEMENTS * distance_of(block_of(w) * w->channels);
    s.in = s.out + TILE * TILE * w->most_tiles;
    s.in_at = s.out_at + w->most_tiles;
    return s;
}

qk_status qk_winograd_init(qk_winograd *w, const qk_training_data *d, const qk_winograd_plan *plan, int threads) {
    const int64_t O = d->geometry.outputs, C = d->geometry.inputs / TAPS, positions = d->extent.positions;
    *w = (qk_winograd){.data = d, .channels = C, .outputs = O, .tile_columns = tile_columns(d)};
    const layout l = layout_of(w, qk_larger(1, plan->columns / positions), qk_smaller(plan->columns, positions));
    const int64_t block = block_of(w) * C;
    w->most_tiles = l.tiles;
    w->distance = distance_of(O * C);
    w->scratch_size = (C + block_of(w)) * ELEMENTS * l.tiles + ELEMENTS * distance_of(block) + TILE * TILE * l.tiles +
                      l.samples * l.in_size;
    w->filters = QK_NEW(float, d->geometry.groups, ELEMENTS, w->distance);
    w->scratch = QK_NEW(float, threads, w->scratch_size);
    w->places = QK_NEW(int32_t, threads, 2, l.tiles);
    w->nines = QK_NEW(int32_t, block);
    for (int64_t i = 0; i < block && w->nines; i++) w->nines[i] = (int32_t)(TAPS * i);
    return w->filters && w->scratch && w->places && w->nines ? QK_OK : QK_E_NOMEM;
}

void qk_winograd_destroy(qk_winograd *w) {
    free(w->filters);
    free(w->scratch);
    free(w->places);
    free(w->nines);
}

/* ---- filters --------------------------------------------------------------------------------- */

typedef struct {
    qk_winograd *w;
    const float *weight;
} filter_job;

static void filter_task(void *context, int64_t task, int worker) {
    (void)worker;
    const filter_job *job = context;
    const qk_winograd *w = job->w;
    const int64_t C = w->channels, blocks = qk_ceil_div(w->outputs, BLOCK), group = task / blocks;
    const int64_t first = task % blocks * BLOCK;
    qk_kernels_get()->winograd_filter(w->filters + group * ELEMENTS * w->distance + first * C, w->distance,
                                      job->weight + (group * w->outputs + first) * C * TAPS, w->nines, 3,
                                      (size_t)(qk_smaller(BLOCK, w->outputs - first) * C));
}

void qk_winograd_use_weight(qk_winograd *w, const float *weight, qk_pool *pool) {
    qk_pool_run(pool, filter_task, &(filter_job){w, weight}, w->data->geometry.groups * qk_ceil_div(w->outputs, BLOCK));
}

/* ---- inputs ---------------------------------------------------------------------------------- */

static void copy_values(float *to, const qk_tensor *x, int64_t from, int64_t n) {
    switch (x->dtype) {
    case QK_F32: memcpy(to, (const float *)x->data + from, (size_t)n * sizeof *to); break;
    case QK_U8: qk_kernels_get()->dequantize_u8(to, (const uint8_t *)x->data + from, (size_t)n, x->affine); break;
    case QK_I8: qk_kernels_get()->dequantize_i8(to, (const int8_t *)x->data + from, (size_t)n, x->affine); break;
    }
}

static void find_tiles(int32_t *at, const layout *l, int64_t columns, int64_t size, int64_t width) {
    for (int64_t s = 0; s < l->samples; s++)
        for (int64_t i = 0; i < l->rows; i++)
            for (int64_t j = 0; j < columns; j++) *at++ = (int32_t)(s * size + i * TILE * width + j * TILE);
}

/* Transforms the inputs of a part. */
static void take_inputs(const qk_winograd *w, const qk_part *p, const layout *l, const scratch *s) {
    const qk_extent *e = &w->data->extent;
    const int64_t height = l->in_size / l->in_width, width = l->in_width;
    const int64_t top = p->position / e->out[1] - e->pad[0], left = -e->pad[1]; /* what a plane begins with */
    const int64_t first_row = qk_larger(0, -top), last_row = qk_smaller(height, e->in[0] - top);
    const int64_t first = qk_larger(0, -left), n = qk_smaller(width, e->in[1] - left) - first;
    find_tiles(s->in_at, l, w->tile_columns, l->in_size, width);
    memset(s->in, 0, (size_t)(l->samples * l->in_size) * sizeof *s->in); /* padding stays zero for all channels */
    for (int64_t c = 0; c < w->channels; c++) {
        for (int64_t i = 0; i < l->samples && n > 0; i++) {
            const int64_t channel = (p->group * w->channels + c) * e->x_channel;
            const qk_tensor *x = &p->x[p->which ? p->which[p->first + i] : p->first + i];
            for (int64_t row = first_row; row < last_row; row++)
                copy_values(s->in + i * l->in_size + row * width + first, x,
                            channel + (top + row) * e->in[1] + left + first, n);
        }
        qk_kernels_get()->winograd_input(s->inputs + c * ELEMENTS * l->tiles, l->tiles, s->in, s->in_at, width,
                                         (size_t)l->tiles);
    }
}

/* ---- forward and backward -------------------------------------------------------------------- */

/* Between a line of outputs and planes of whole tiles. */
static void line_from_planes(float *line, const float *planes, const layout *l, int64_t W) {
    for (int64_t s = 0; s < l->samples; s++)
        for (int64_t i = 0; i < l->count / W; i++)
            memcpy(line + s * l->count + i * W, planes + s * l->out_size + i * l->out_width, (size_t)W * sizeof *line);
}

static void line_to_planes(float *planes, const float *line, const layout *l, int64_t W) {
    for (int64_t s = 0; s < l->samples; s++)
        for (int64_t i = 0; i < l->count / W; i++)
            memcpy(planes + s * l->out_size + i * l->out_width, line + s * l->count + i * W, (size_t)W * sizeof *line);
}

void qk_winograd_forward(qk_winograd *w, const qk_part *p, int worker, float *out) {
    const layout l = layout_of_part(w, p);
    const scratch s = scratch_of(w, worker);
    const int64_t C = w->channels, T = l.tiles, ld = ELEMENTS * T, n = l.samples * l.count;
    const float *filters = w->filters + p->group * ELEMENTS * w->distance + p->output * C;
    take_inputs(w, p, &l, &s);
    find_tiles(s.out_at, &l, w->tile_columns, l.out_size, l.out_width);
    for (int64_t first = 0; first < p->outputs; first += BLOCK) {
        const int64_t count = qk_smaller(BLOCK, p->outputs - first);
        for (int64_t f = 0; f < ELEMENTS; f++)
            qk_sgemm(s.products + f * T, filters + f * w->distance + first * C, s.inputs + f * T,
                     (qk_gemm_shape){.m = count, .n = T, .k = C, .lda = C, .ldb = ld, .ldc = ld});
        for (int64_t o = 0; o < count; o++) {
            float *line = out + (first + o) * n;
            qk_kernels_get()->winograd_output(l.exact ? line : s.out, s.out_at, l.out_width, s.products + o * ld, T,
                                              (size_t)T);
            if (!l.exact) line_from_planes(line, s.out, &l, w->data->extent.out[1]);
        }
    }
}

void qk_winograd_backward(qk_winograd *w, const qk_part *p, int worker, float *gradient, const float *error) {
    const layout l = layout_of_part(w, p);
    const scratch s = scratch_of(w, worker);
    const int64_t C = w->channels, T = l.tiles, ld = ELEMENTS * T, n = l.samples * l.count;
    if (!l.exact) memset(s.out, 0, (size_t)(l.samples * l.out_size) * sizeof *s.out); /* what lies beyond the edge */
    for (int64_t first = 0; first < p->outputs; first += BLOCK) {
        const int64_t count = qk_smaller(BLOCK, p->outputs - first), distance = distance_of(count * C);
        for (int64_t o = 0; o < count; o++) {
            const float *line = error + (first + o) * n;
            if (!l.exact) line_to_planes(s.out, line, &l, w->data->extent.out[1]);
            qk_kernels_get()->winograd_error(s.products + o * ld, T, l.exact ? line : s.out, s.out_at, l.out_width,
                                             (size_t)T);
        }
        for (int64_t f = 0; f < ELEMENTS; f++)
            qk_sgemm(s.derivatives + f * distance, s.products + f * T, s.inputs + f * T,
                     (qk_gemm_shape){.m = count, .n = C, .k = T, .lda = ld, .ldb = ld, .ldc = C, .b_transposed = true});
        qk_kernels_get()->winograd_gradient(gradient + first * C * TAPS, w->nines, 3, s.derivatives, distance,
                                            (size_t)(count * C));
    }
}
