#include "loss/gram_loss.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/sizes.h"
#include "kernels/kernels.h"

enum {
    FEWEST_LINES = 16, /* in a task of a step */
    FEW_OUTPUTS = 2    /* up to here per group (depthwise) vector loops beat BLAS */
};

/* Memory must not grow with the data; this is what the inputs of a large layer take anyhow. */
static const double MOST_BYTES = 96 << 20;

/* ---- what it costs, in operations of a matrix product (10 picoseconds where it was measured) ------ */

static const double FETCH = 60;     /* an input of a row (im2col), and that products with few outputs are slow */
static const double GROUP = 80000;  /* to begin with a group of a sample */
static const double STORE = 200;    /* a number of a Gram matrix in new memory */
static const double READ = 30;      /* the same in a step: it is not in a cache */
static const double OUTPUT = 10000; /* what a step does for an output whatever its inputs */
static const double TASK = 3e6;     /* what is worth to be given to another thread */
static const double WINOGRAD = 0.6; /* of a direct step, by Winograd's filtering */
static const double FLOATS = 2;     /* a product of a Gram matrix: of floats, mostly on one side of the diagonal, */
static const double BYTES = 0.4;    /* of bytes */
static const double MARGIN = 0.75;  /* costs are known roughly: a small gain is none */

/* A step of one group of K inputs and O outputs. */
static double step_cost(double K, double O, double batch) {
    return 2 * O * K * K + READ * batch * K * (K + O) + OUTPUT * O;
}

bool qk_gram_loss_pays(const qk_geometry *geometry, int64_t positions, qk_gram_loss_use use) {
    const double K = (double)geometry->inputs, O = (double)geometry->outputs, P = (double)positions;
    const double samples = (double)use.samples, batch = (double)use.batch, steps = (double)use.steps;
    const double stored = samples * (K + 1) * (K + 1 + O); /* with a bias that is trained */
    const double sums = 3 * samples * O + (use.as_bytes ? K * (K + 1) : 0);
    const double bytes = (double)geometry->groups * (stored * sizeof(float) + sums * sizeof(double));
    const double product = use.as_bytes ? BYTES : FLOATS;
    /* Without Gram matrices of samples, that of all is made of bytes for judging. */
    const double judging = use.as_bytes ? samples * (P * K * (BYTES * K + 2 * O + FETCH / 2)) : 0;
    const double direct = (use.winograd ? WINOGRAD : 1) * steps * batch * (P * K * (4 * O + FETCH) + GROUP) + judging;
    const double making = samples * (P * K * (product * K + 4 * O + FETCH) + GROUP) + STORE * stored;
    return bytes <= MOST_BYTES && making + steps * step_cost(K, O, batch) < MARGIN * direct;
}

/* ---- sizes, on which alone it depends how work is cut ------------------------------------------ */

static const qk_geometry *geometry_of(const qk_gram_loss *g) { return &g->of->on->data->geometry; }

/* A step's tasks are parts of a group, or several groups as a whole. */
static void cut(qk_gram_loss *g, int64_t batch) {
    const int64_t L = g->of->inputs, groups = geometry_of(g)->groups;
    const double tasks = step_cost((double)L, (double)g->of->outputs, (double)batch) / TASK;
    const int64_t most = qk_ceil_div(L, FEWEST_LINES), parts = tasks < 1 ? 1 : qk_smaller((int64_t)tasks, most);
    g->lines = qk_ceil_div(L, parts);
    g->parts = qk_ceil_div(L, g->lines);
    g->bundle = tasks < 1 ? qk_smaller((int64_t)(1 / tasks), groups) : 1;
}

/* Sums over the samples of a step, and V. */
static int64_t sums_size(const qk_gram_loss *g, int64_t batch) {
    const int64_t whole = g->bundle * qk_sample_gram_size(g->of), part = g->lines * (g->of->inputs + g->of->outputs);
    return batch == 1 ? 0 : g->parts > 1 ? part : whole;
}
static int64_t v_size(const qk_gram_loss *g) { return g->of->outputs * g->lines; }

qk_status qk_gram_loss_init(qk_gram_loss *g, const qk_sample_grams *of, int64_t batch) {
    const qk_reconstruction *on = of->on;
    *g = (qk_gram_loss){.of = of};
    cut(g, batch);
    g->scratch_size = v_size(g) + sums_size(g, batch);
    g->moved = QK_NEW(float, on->rows, of->inputs);
    g->change = QK_NEW(double, g->parts, on->rows);
    g->scratch = QK_NEW(float, qk_pool_threads(on->pool), g->scratch_size);
    return g->moved && g->change && g->scratch ? QK_OK : QK_E_NOMEM;
}

void qk_gram_loss_destroy(qk_gram_loss *g) {
    free(g->moved);
    free(g->change);
    free(g->scratch);
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
    const qk_sample_grams *of = s->g->of;
    return of->products + of->place[s->samples[i]] * geometry_of(s->g)->groups * qk_sample_gram_size(of);
}

/* The sum over the step's samples of `lines` lines of n numbers, from element `at` of a sample on: of one sample where
 * it stands, else in `to`. Samples are added in pairs: the sum is fetched half as often. */
static matrix sum_of(const step *s, int64_t at, int64_t lines, int64_t n, float *to) {
    const int64_t ld = s->g->of->inputs, odd = s->count % 2;
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
    const int64_t L = g->of->inputs, O = g->of->outputs;
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
    const int64_t L = g->of->inputs, O = g->of->outputs, K = geometry_of(g)->inputs, part = first / g->lines;
    multiply(g, v, g->moved + group * O * L, gram, n);
    for (int64_t o = 0; o < O; o++) {
        const int64_t row = group * O + o;
        const float *c = cross.at + o * cross.ld, *moved = g->moved + row * L + first;
        float *half = v + o * n, *gradient = s->result->gradient + row * K + first;
        for (int64_t k = 0; k < n; k++) half[k] += c[k];
        g->change[part * g->of->on->rows + row] =
            kernels->dot_f32(moved, half, (size_t)n) + kernels->dot_f32(moved, c, (size_t)n);
        const int64_t weights = qk_smaller(n, K - first);
        for (int64_t k = 0; k < weights; k++) gradient[k] = s->factor * half[k];
        if (s->result->slope && weights < n) s->result->slope[row] = s->factor * half[weights];
    }
}

static void step_task(void *context, int64_t task, int worker) {
    const step *s = context;
    const qk_gram_loss *g = s->g;
    const int64_t L = g->of->inputs, O = g->of->outputs, groups = geometry_of(g)->groups;
    const int64_t size = qk_sample_gram_size(g->of);
    float *v = g->scratch + worker * g->scratch_size, *sums = v + v_size(g);
    if (g->parts > 1) {
        const int64_t group = task / g->parts, first = task % g->parts * g->lines;
        const int64_t n = qk_smaller(g->lines, L - first), at = group * size;
        const matrix gram = sum_of(s, at + first * L, 1, n * L, sums);
        const matrix cross = sum_of(s, at + L * L + first, O, n, sums + n * L);
        step_part(s, group, first, n, gram.at, cross, v);
        return;
    }
    const int64_t first = task * g->bundle, end = qk_smaller(first + g->bundle, groups);
    const float *all = sum_of(s, first * size, 1, (end - first) * size, sums).at;
    for (int64_t group = first; group < end; group++, all += size)
        step_part(s, group, 0, L, all, (matrix){all + L * L, L}, v);
}

static void set_moved(qk_gram_loss *g, const float *weight, const float *bias) {
    const qk_sample_grams *of = g->of;
    const int64_t K = geometry_of(g)->inputs;
    for (int64_t row = 0; row < of->on->rows; row++) {
        float *moved = g->moved + row * of->inputs;
        for (int64_t k = 0; k < K; k++) moved[k] = weight[row * K + k] - of->weight[row * K + k];
        if (of->with_bias) moved[K] = bias[row] - of->bias[row];
    }
}

void qk_gram_loss_find(qk_gram_loss *g, const float *weight, const float *bias, const int64_t *samples, int64_t count,
                       qk_reconstruction_result *result) {
    const qk_reconstruction *on = g->of->on;
    const int64_t groups = geometry_of(g)->groups, rows = on->rows;
    const double columns = (double)(count * on->data->extent.positions);
    set_moved(g, weight, bias);
    qk_pool_run(on->pool, step_task, &(step){g, samples, count, (float)(2 / columns), result},
                qk_ceil_div(groups, g->bundle) * g->parts);
    result->loss = 0;
    for (int64_t row = 0; row < rows; row++) {
        double squares = 0;
        for (int64_t i = 0; i < count; i++) squares += g->of->squares[g->of->place[samples[i]] * rows + row];
        for (int64_t part = 0; part < g->parts; part++) squares += g->change[part * rows + row];
        if (result->row_loss) result->row_loss[row] = squares / columns;
        result->loss += squares / columns;
    }
}
