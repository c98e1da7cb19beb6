#include "finetune/gram_loss.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"

enum {
    STRIP = 64,        /* lines of a Gram matrix in one product: what is above the diagonal is mostly left out */
    FEWEST_LINES = 16, /* in a task of a step */
    FEW_OUTPUTS = 2    /* up to here per group (depthwise) vector loops beat BLAS */
};

/* Memory must not grow with the data; this is what the inputs of a large layer take anyhow. */
static const double MOST_BYTES = 96 << 20;

/* ---- what it costs, in operations of a matrix product (10 picoseconds where it was measured) ------ */

static const double FETCH = 80;      /* an input of a row (im2col) */
static const double GROUP = 80000;   /* to begin with a group of a sample */
static const double STORE = 150;     /* a number of a Gram matrix in new memory */
static const double READ = 30;       /* the same in a step: it is not in a cache */
static const double OUTPUT = 10000;  /* what a step does for an output whatever its inputs */
static const double TASK = 3e6;      /* what is worth to be given to another thread */
static const double WINOGRAD = 0.45; /* of a direct step, by Winograd's filtering */
static const double MARGIN = 0.75;   /* costs are known roughly: a small gain is none */

/* A step of one group of K inputs and O outputs. */
static double step_cost(double K, double O, double batch) {
    return 2 * O * K * K + READ * batch * K * (K + O) + OUTPUT * O;
}

bool qk_gram_loss_pays(const qk_geometry *geometry, int64_t positions, qk_gram_loss_use use) {
    const double K = (double)geometry->inputs, O = (double)geometry->outputs, P = (double)positions;
    const double samples = (double)use.samples, batch = (double)use.batch, steps = (double)use.steps;
    const double stored = samples * (K + 1) * (K + 1 + O); /* with a bias that is trained */
    const double bytes = (double)geometry->groups * (stored * sizeof(float) + samples * O * sizeof(double));
    const double direct = (use.winograd ? WINOGRAD : 1) * steps * batch * (P * K * (4 * O + FETCH) + GROUP);
    const double making = samples * (P * K * (2 * K + 4 * O + FETCH) + GROUP) + STORE * stored;
    return bytes <= MOST_BYTES && making + steps * step_cost(K, O, batch) < MARGIN * direct;
}

/* ---- sizes, on which alone it depends how work is cut ------------------------------------------ */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t group_size(const qk_gram_loss *g) { return (g->inputs + g->outputs) * g->inputs; }
static int64_t sample_size(const qk_gram_loss *g) { return g->on->data->geometry.groups * group_size(g); }

/* A step's tasks are parts of a group, or several groups as a whole. */
static void cut(qk_gram_loss *g, int64_t batch) {
    const double tasks = step_cost((double)g->inputs, (double)g->outputs, (double)batch) / TASK;
    const int64_t most = (g->inputs + FEWEST_LINES - 1) / FEWEST_LINES, groups = g->on->data->geometry.groups;
    const int64_t parts = tasks < 1 ? 1 : smaller((int64_t)tasks, most);
    g->lines = (g->inputs + parts - 1) / parts;
    g->parts = (g->inputs + g->lines - 1) / g->lines;
    g->bundle = tasks < 1 ? smaller((int64_t)(1 / tasks), groups) : 1;
}

/* Of a step: sums over its samples, and V. */
static int64_t sums_size(const qk_gram_loss *g, int64_t batch) {
    const int64_t whole = g->bundle * group_size(g), part = g->lines * (g->inputs + g->outputs);
    return batch == 1 ? 0 : g->parts > 1 ? part : whole;
}
static int64_t v_size(const qk_gram_loss *g) { return g->outputs * g->lines; }

/* Of making the products: inputs, errors and a target of a piece. */
static int64_t panel_size(const qk_gram_loss *g) { return (g->inputs + g->outputs + 1) * g->on->pieces.size; }

qk_status qk_gram_loss_init(qk_gram_loss *g, const qk_reconstruction *on, const float *weight, const float *bias,
                            bool trains_bias, qk_gram_loss_use use) {
    const int64_t K = on->data->geometry.inputs;
    *g = (qk_gram_loss){
        .on = on, .trains_bias = trains_bias, .inputs = trains_bias ? K + 1 : K, .outputs = on->data->geometry.outputs};
    cut(g, use.batch);
    const int64_t step = v_size(g) + sums_size(g, use.batch);
    g->scratch_size = step > panel_size(g) ? step : panel_size(g);
    g->place = QK_NEW(int64_t, on->data->count);
    g->products = QK_NEW(float, use.samples * sample_size(g));
    g->squares = QK_NEW(double, use.samples * on->rows);
    g->weight = QK_NEW(float, on->rows * K);
    g->bias = QK_NEW(float, on->rows);
    g->moved = QK_NEW(float, on->rows * g->inputs);
    g->change = QK_NEW(double, g->parts * on->rows);
    g->scratch = QK_NEW(float, qk_pool_threads(on->pool) * g->scratch_size);
    if (!g->place || !g->products || !g->squares || !g->weight || !g->bias || !g->moved || !g->change || !g->scratch)
        return QK_E_NOMEM;
    memcpy(g->weight, weight, (size_t)(on->rows * K) * sizeof *weight);
    memcpy(g->bias, bias, (size_t)on->rows * sizeof *bias);
    return QK_OK;
}

void qk_gram_loss_destroy(qk_gram_loss *g) {
    void *arrays[] = {g->place, g->products, g->squares, g->weight, g->bias, g->moved, g->change, g->scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* ---- the products of a sample ------------------------------------------------------------------ */

/* X X' and R X' += those of a panel, X above R, of n columns: of X X' the strips up to the diagonal. */
static void add_products(const qk_gram_loss *g, float *products, const float *panel, int64_t n) {
    const int64_t L = g->inputs;
    for (int64_t first = 0; first < L; first += STRIP) {
        const int64_t end = smaller(first + STRIP, L), lines = end < L ? STRIP : L + g->outputs - first;
        qk_sgemm(
            products + first * L, panel + first * n, panel,
            (qk_gemm_shape){
                .m = lines, .n = end, .k = n, .lda = n, .ldb = n, .ldc = L, .b_transposed = true, .accumulate = true});
    }
}

static void mirror(float *gram, int64_t L) {
    for (int64_t i = STRIP; i < L; i++)
        for (int64_t j = 0; j < i / STRIP * STRIP; j++) gram[j * L + i] = gram[i * L + j];
}

typedef struct {
    qk_gram_loss *g;
    const int64_t *samples;
} addition;

/* One group of one sample. */
static void add_task(void *context, int64_t task, int worker) {
    const addition *a = context;
    qk_gram_loss *g = a->g;
    const qk_geometry *geometry = &g->on->data->geometry;
    const int64_t i = task / geometry->groups, group = task % geometry->groups, place = g->samples + i;
    float *products = g->products + place * sample_size(g) + group * group_size(g);
    for (int64_t piece = 0; piece < g->on->pieces.count; piece++) {
        const int64_t n = g->on->pieces.tables[piece].count;
        float *panel = g->scratch + worker * g->scratch_size, *error = panel + g->inputs * n;
        for (int64_t p = 0; p < n && g->trains_bias; p++) error[p - n] = 1;
        qk_reconstruct_piece(g->on, g->weight, g->bias, a->samples[i],
                             &(qk_piece_errors){.group = group,
                                                .piece = piece,
                                                .panel = panel,
                                                .error = error,
                                                .target = error + g->outputs * n,
                                                .squares = g->squares + place * g->on->rows + group * g->outputs});
        add_products(g, products, panel, n);
    }
    mirror(products, g->inputs);
}

void qk_gram_loss_add(qk_gram_loss *g, const int64_t *samples, int64_t count) {
    qk_pool_run(g->on->pool, add_task, &(addition){g, samples}, count * g->on->data->geometry.groups);
    for (int64_t i = 0; i < count; i++) g->place[samples[i]] = g->samples++;
}

/* ---- a step ------------------------------------------------------------------------------------ */

typedef struct {
    qk_gram_loss *g;
    const int64_t *samples;
    int64_t count;
    float factor; /* from half the sum of squares to the loss */
    const qk_reconstruction_result *result;
} step;

/* Lines of n numbers, ld apart. */
typedef struct {
    const float *at;
    int64_t ld;
} matrix;

static const float *products_of(const step *s, int64_t i) {
    return s->g->products + s->g->place[s->samples[i]] * sample_size(s->g);
}

/* The sum over the step's samples of `lines` lines of n numbers, from element `at` of a sample on: of one sample where
 * it stands, else in `to`. Samples are added in pairs: the sum is fetched half as often. */
static matrix sum_of(const step *s, int64_t at, int64_t lines, int64_t n, float *to) {
    const int64_t ld = s->g->inputs, odd = s->count % 2;
    const float *first = products_of(s, 0) + at;
    if (s->count == 1) return (matrix){first, ld};
    for (int64_t line = 0; line < lines && odd; line++)
        memcpy(to + line * n, first + line * ld, (size_t)n * sizeof *to);
    if (!odd) memset(to, 0, (size_t)(lines * n) * sizeof *to);
    for (int64_t i = odd; i < s->count; i += 2) {
        const float *a = products_of(s, i) + at, *b = products_of(s, i + 1) + at;
        for (int64_t line = 0; line < lines; line++) {
            float *restrict sum = to + line * n;
            const float *restrict x = a + line * ld, *restrict y = b + line * ld;
            for (int64_t k = 0; k < n; k++) sum[k] += x[k] + y[k];
        }
    }
    return (matrix){to, n};
}

/* v (O, n) = D G', for n lines of G. */
static void multiply(const qk_gram_loss *g, float *v, const float *moved, const float *gram, int64_t n) {
    const int64_t L = g->inputs, O = g->outputs;
    if (O <= FEW_OUTPUTS && n == L) { /* G is symmetric */
        for (int64_t o = 0; o < O; o++) qk_kernels_get()->weighted_sum(v + o * L, moved + o * L, gram, L, L, (size_t)L);
        return;
    }
    qk_sgemm(v, moved, gram,
             (qk_gemm_shape){.m = O, .n = n, .k = L, .lda = L, .ldb = L, .ldc = n, .b_transposed = true});
}

/* n inputs of a group, from `first` on, whose lines of G and columns of C these are. */
static void step_part(const step *s, int64_t group, int64_t first, int64_t n, const float *gram, matrix cross,
                      float *v) {
    const qk_gram_loss *g = s->g;
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t L = g->inputs, O = g->outputs, K = g->on->data->geometry.inputs, part = first / g->lines;
    multiply(g, v, g->moved + group * O * L, gram, n);
    for (int64_t o = 0; o < O; o++) {
        const int64_t row = group * O + o;
        const float *c = cross.at + o * cross.ld, *moved = g->moved + row * L + first;
        float *half = v + o * n, *gradient = s->result->gradient + row * K + first;
        for (int64_t k = 0; k < n; k++) half[k] += c[k];
        g->change[part * g->on->rows + row] =
            kernels->dot_f32(moved, half, (size_t)n) + kernels->dot_f32(moved, c, (size_t)n);
        const int64_t weights = smaller(n, K - first);
        for (int64_t k = 0; k < weights; k++) gradient[k] = s->factor * half[k];
        if (s->result->slope && weights < n) s->result->slope[row] = s->factor * half[weights];
    }
}

static void step_task(void *context, int64_t task, int worker) {
    const step *s = context;
    const qk_gram_loss *g = s->g;
    const int64_t L = g->inputs, O = g->outputs, groups = g->on->data->geometry.groups, size = group_size(g);
    float *v = g->scratch + worker * g->scratch_size, *sums = v + v_size(g);
    if (g->parts > 1) {
        const int64_t group = task / g->parts, first = task % g->parts * g->lines;
        const int64_t n = smaller(g->lines, L - first), at = group * size;
        const matrix gram = sum_of(s, at + first * L, 1, n * L, sums);
        const matrix cross = sum_of(s, at + L * L + first, O, n, sums + n * L);
        step_part(s, group, first, n, gram.at, cross, v);
        return;
    }
    const int64_t first = task * g->bundle, end = smaller(first + g->bundle, groups);
    const float *all = sum_of(s, first * size, 1, (end - first) * size, sums).at;
    for (int64_t group = first; group < end; group++, all += size)
        step_part(s, group, 0, L, all, (matrix){all + L * L, L}, v);
}

static void set_moved(qk_gram_loss *g, const float *weight, const float *bias) {
    const int64_t K = g->on->data->geometry.inputs;
    for (int64_t row = 0; row < g->on->rows; row++) {
        float *moved = g->moved + row * g->inputs;
        for (int64_t k = 0; k < K; k++) moved[k] = weight[row * K + k] - g->weight[row * K + k];
        if (g->trains_bias) moved[K] = bias[row] - g->bias[row];
    }
}

void qk_gram_loss_find(qk_gram_loss *g, const float *weight, const float *bias, const int64_t *samples, int64_t count,
                       qk_reconstruction_result *result) {
    const int64_t groups = g->on->data->geometry.groups, rows = g->on->rows;
    const double columns = (double)(count * g->on->data->extent.positions);
    set_moved(g, weight, bias);
    qk_pool_run(g->on->pool, step_task, &(step){g, samples, count, (float)(2 / columns), result},
                (groups + g->bundle - 1) / g->bundle * g->parts);
    result->loss = 0;
    for (int64_t row = 0; row < rows; row++) {
        double squares = 0;
        for (int64_t i = 0; i < count; i++) squares += g->squares[g->place[samples[i]] * rows + row];
        for (int64_t part = 0; part < g->parts; part++) squares += g->change[part * rows + row];
        if (result->row_loss) result->row_loss[row] = squares / columns;
        result->loss += squares / columns;
    }
}
