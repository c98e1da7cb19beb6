#include "loss/reconstruction.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"

enum { FEW_OUTPUTS = 2 }; /* up to here per group (depthwise) vector loops beat BLAS */

enum { MOST_COLUMNS = 512, FEWEST_COLUMNS = 32, UNITS = 4 };

/* Softmax needs a sample as a whole; it is a unit then, with all its pieces and groups. */
static bool takes_whole_samples(const qk_training_data *d) { return d->stage.activation.kind == QK_SOFTMAX; }

/* Few enough columns for the second-level cache, and for some units even if the samples are few. */
static int64_t chunk_for(const qk_training_data *d, int64_t samples) {
    const int64_t each = (samples * d->extent.positions / UNITS + 15) / 16 * 16;
    return each < FEWEST_COLUMNS ? FEWEST_COLUMNS : each > MOST_COLUMNS ? MOST_COLUMNS : each;
}

/* Samples of one unit of work: several small ones, or a piece of a large one. */
static int64_t samples_per_unit(const qk_reconstruction *r) {
    const int64_t n = r->chunk / r->data->extent.positions;
    return n < 1 || takes_whole_samples(r->data) ? 1 : n;
}

/* Pieces of a sample that a call looks at. */
static int64_t pieces_seen(const qk_reconstruction *r) {
    return qk_ceil_div(r->pieces.count - r->first_piece, r->stride);
}

static int64_t positions_seen(const qk_reconstruction *r) {
    int64_t sum = 0;
    for (int64_t piece = r->first_piece; piece < r->pieces.count; piece += r->stride)
        sum += r->pieces.tables[piece].count;
    return sum;
}

static int64_t unit_count(const qk_reconstruction *r, int64_t samples) {
    const int64_t each = samples_per_unit(r);
    return qk_ceil_div(samples, each) * (takes_whole_samples(r->data) ? 1 : pieces_seen(r));
}

qk_status qk_reconstruction_init(qk_reconstruction *r, const qk_training_data *data, int64_t most_samples,
                                 int64_t most_trained, qk_pool *pool) {
    const qk_geometry *g = &data->geometry;
    const int64_t rows = g->groups * g->outputs, threads = qk_pool_threads(pool);
    *r = (qk_reconstruction){
        .data = data, .pool = pool, .rows = rows, .chunk = chunk_for(data, most_samples), .stride = 1};
    /* Judging has to be exact: only calls that want the gradient are worth a digit. */
    if (most_trained > 0 && g->outputs > FEW_OUTPUTS && !takes_whole_samples(data))
        r->plan = qk_winograd_plan_of(data, most_trained);
    if (r->plan.pays) {
        r->chunk = r->plan.columns;
        QK_TRY(qk_winograd_init(&r->winograd, data, &r->plan, threads));
    }
    QK_TRY(qk_pieces_init(&r->pieces, data, r->chunk));
    const int64_t units = unit_count(r, most_samples);
    r->panels = QK_NEW(float, threads, g->inputs + 2 * g->outputs, r->chunk);
    r->outputs = QK_NEW(float, takes_whole_samples(data) ? 4 : 0, threads, rows, data->extent.positions);
    r->gradient = QK_NEW(float, unit_count(r, most_trained), rows, g->inputs);
    r->slope = QK_NEW(float, units, rows);
    r->loss = QK_NEW(double, units, rows);
    r->power = QK_NEW(double, units, g->groups, g->inputs);
    r->target_power = QK_NEW(double, units, rows);
    r->slope_power = QK_NEW(double, units, rows);
    const bool ok =
        r->panels && r->outputs && r->gradient && r->slope && r->loss && r->power && r->target_power && r->slope_power;
    return ok ? QK_OK : QK_E_NOMEM;
}

void qk_reconstruction_destroy(qk_reconstruction *r) {
    qk_pieces_destroy(&r->pieces);
    qk_winograd_destroy(&r->winograd);
    void *arrays[] = {r->panels, r->outputs, r->gradient, r->slope, r->loss, r->power, r->target_power, r->slope_power};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

typedef struct {
    qk_reconstruction *r;
    const float *weight, *bias;
    const int64_t *samples;
    int64_t count, units;
    bool by_winograd;
    int64_t outputs; /* of a task */
    const qk_reconstruction_result *wanted;
} batch;

/* out (O, n) = weight (O, K) panel (K, n). */
static void forward(float *out, const float *weight, const float *panel, int64_t O, int64_t K, int64_t n) {
    if (O > FEW_OUTPUTS) {
        qk_sgemm(out, weight, panel, (qk_gemm_shape){.m = O, .n = n, .k = K, .lda = K, .ldb = n, .ldc = n});
        return;
    }
    for (int64_t o = 0; o < O; o++) qk_kernels_get()->weighted_sum(out + o * n, weight + o * K, panel, K, n, (size_t)n);
}

/* gradient (O, K) = error (O, n) panel' (n, K), or += that. */
static void backward(float *gradient, const float *error, const float *panel, int64_t O, int64_t K, int64_t n,
                     bool accumulate) {
    if (O > FEW_OUTPUTS) {
        qk_sgemm(
            gradient, error, panel,
            (qk_gemm_shape){
                .m = O, .n = K, .k = n, .lda = n, .ldb = n, .ldc = K, .b_transposed = true, .accumulate = accumulate});
        return;
    }
    for (int64_t o = 0; o < O; o++)
        for (int64_t k = 0; k < K; k++) {
            const float dot = (float)qk_kernels_get()->dot_f32(error + o * n, panel + k * n, (size_t)n);
            gradient[o * K + k] = accumulate ? gradient[o * K + k] + dot : dot;
        }
}

/* The target of one output line, from column `column` of to on. */
static void copy_target(float *to, const qk_reconstruction *r, int64_t sample, int64_t piece, int64_t row) {
    const qk_extent *e = &r->data->extent;
    const int64_t first = piece * r->pieces.size, n = r->pieces.tables[piece].count;
    const float *y = (const float *)r->data->y[sample].data + row * e->y_output + first * e->y_position;
    if (e->y_position == 1) {
        memcpy(to, y, (size_t)n * sizeof *to);
        return;
    }
    for (int64_t i = 0; i < n; i++) to[i] = y[i * e->y_position];
}

/* Inputs of the i-th sample of a call. */
static void fill_panel(const batch *b, int64_t i, const qk_piece_fill *to) {
    const qk_training_data *d = b->r->data;
    qk_fill_piece(d, b->r->inputs ? b->r->inputs[i] : d->x[b->samples[i]], to);
}

/* A line of n outputs of one row: its error in place of out, and all sums of it. bias: still to be added. */
static void judge_line(const batch *b, int64_t unit, int64_t row, float bias, float *out, float *target, int64_t n) {
    const qk_kernels *kernels = qk_kernels_get();
    const qk_output_stage *stage = &b->r->data->stage;
    const int64_t at = unit * b->r->rows + row;
    b->r->slope_power[at] = (double)n;
    if (qk_stage_is_plain(stage)) {
        b->r->loss[at] = kernels->output_error(out, target, bias, (size_t)n);
    } else {
        b->r->slope_power[at] = 0;
        b->r->loss[at] = qk_stage_line(stage, row, bias, out, target, (size_t)n, &b->r->slope_power[at]);
    }
    if (b->wanted->target_power) b->r->target_power[at] = kernels->sum_squares(target, (size_t)n);
    if (b->wanted->slope) b->r->slope[at] = (float)kernels->sum(out, (size_t)n);
}

static void add_input_power(const batch *b, int64_t unit, int64_t group, const float *panel, int64_t n) {
    const qk_geometry *g = &b->r->data->geometry;
    double *power = b->r->power + (unit * g->groups + group) * g->inputs;
    for (int64_t k = 0; k < g->inputs && b->wanted->mean_power; k++)
        power[k] += qk_kernels_get()->sum_squares(panel + k * n, (size_t)n);
}

/* im2col of one group on the columns of one unit, and its outputs. */
static void multiply_panel(const batch *b, const qk_part *p, float *out, float *panel, int64_t n) {
    const qk_training_data *d = b->r->data;
    const int64_t K = d->geometry.inputs, O = d->geometry.outputs;
    const qk_row_table *piece = &b->r->pieces.tables[p->position / b->r->pieces.size];
    for (int64_t s = p->first; s < p->last; s++)
        fill_panel(b, s, &(qk_piece_fill){piece, p->group, panel, n, (s - p->first) * p->count, NULL});
    forward(out, b->weight + p->group * O * K, panel, O, K, n);
}

/* Some outputs of one group on the columns of one unit. */
static void run_group(const batch *b, int64_t unit, const qk_part *p, int worker, float *panel) {
    const int64_t K = b->r->data->geometry.inputs, O = p->outputs, n = (p->last - p->first) * p->count;
    const int64_t first_row = p->group * b->r->data->geometry.outputs + p->output;
    float *out = panel + K * n, *target = out + O * n;
    float *gradient = b->r->gradient + (unit * b->r->rows + first_row) * K;
    if (b->by_winograd)
        qk_winograd_forward(&b->r->winograd, p, worker, out);
    else
        multiply_panel(b, p, out, panel, n);
    for (int64_t s = p->first; s < p->last; s++)
        for (int64_t o = 0; o < O; o++)
            copy_target(target + o * n + (s - p->first) * p->count, b->r, b->samples[s],
                        p->position / b->r->pieces.size, first_row + o);
    for (int64_t row = first_row; row < first_row + O; row++) {
        const int64_t at = (row - first_row) * n;
        judge_line(b, unit, row, b->bias ? b->bias[row] : 0, out + at, target + at, n);
    }
    if (b->by_winograd)
        qk_winograd_backward(&b->r->winograd, p, worker, gradient, out);
    else if (b->wanted->gradient)
        backward(gradient, out, panel, O, K, n, false);
    add_input_power(b, unit, p->group, panel, n);
}

/* A whole sample: all outputs, softmax, then the gradient from the inputs once more. */
static void run_sample(const batch *b, int64_t unit, float *panel, float *z) {
    const qk_training_data *d = b->r->data;
    const qk_kernels *kernels = qk_kernels_get();
    const qk_pieces *pieces = &b->r->pieces;
    const int64_t K = d->geometry.inputs, O = d->geometry.outputs, P = d->extent.positions, all = b->r->rows * P;
    float *target = z + all, *error = target + all, *slope_power = error + all;
    for (int64_t piece = 0; piece < pieces->count; piece++)
        for (int64_t group = 0; group < d->geometry.groups; group++) {
            const int64_t n = pieces->tables[piece].count;
            float *out = panel + K * n;
            fill_panel(b, unit, &(qk_piece_fill){&pieces->tables[piece], group, panel, n, 0, NULL});
            forward(out, b->weight + group * O * K, panel, O, K, n);
            add_input_power(b, unit, group, panel, n);
            for (int64_t o = 0; o < O; o++) {
                const int64_t row = group * O + o, at = row * P + piece * pieces->size;
                for (int64_t i = 0; i < n; i++) z[at + i] = out[o * n + i] + (b->bias ? b->bias[row] : 0);
                copy_target(target + at, b->r, b->samples[unit], piece, row);
            }
        }
    qk_stage_softmax(&d->stage, qk_softmax_shape_of(&d->stage, &d->geometry, &d->y[b->samples[unit]]), z, target, error,
                     slope_power);
    for (int64_t row = 0; row < b->r->rows; row++) {
        const int64_t at = unit * b->r->rows + row;
        b->r->loss[at] = kernels->sum_squares(error + row * P, (size_t)P);
        b->r->target_power[at] = kernels->sum_squares(target + row * P, (size_t)P);
        b->r->slope_power[at] = kernels->sum(slope_power + row * P, (size_t)P);
        b->r->slope[at] = (float)kernels->sum(z + row * P, (size_t)P);
    }
    for (int64_t piece = 0; piece < pieces->count && b->wanted->gradient; piece++)
        for (int64_t group = 0; group < d->geometry.groups; group++) {
            const int64_t n = pieces->tables[piece].count;
            float *out = panel + K * n;
            fill_panel(b, unit, &(qk_piece_fill){&pieces->tables[piece], group, panel, n, 0, NULL});
            for (int64_t o = 0; o < O; o++)
                memcpy(out + o * n, z + (group * O + o) * P + piece * pieces->size, (size_t)n * sizeof *out);
            backward(b->r->gradient + (unit * b->r->rows + group * O) * K, out, panel, O, K, n, piece > 0);
        }
}

/* Tasks that share the outputs of a group. */
static int64_t parts_of(const batch *b) { return qk_ceil_div(b->r->data->geometry.outputs, b->outputs); }

static void unit_task(void *context, int64_t task, int worker) {
    const batch *b = context;
    const qk_training_data *d = b->r->data;
    const qk_geometry *g = &d->geometry;
    float *panel = b->r->panels + worker * (g->inputs + 2 * g->outputs) * b->r->chunk;
    if (takes_whole_samples(d)) {
        run_sample(b, task, panel, b->r->outputs + worker * 4 * b->r->rows * d->extent.positions);
        return;
    }
    const int64_t parts = parts_of(b), unit = task / (g->groups * parts), each = samples_per_unit(b->r);
    const int64_t piece = b->r->first_piece + unit % pieces_seen(b->r) * b->r->stride;
    const int64_t first = unit / pieces_seen(b->r) * each;
    const int64_t output = task % parts * b->outputs, rest = g->outputs - output;
    run_group(b, unit,
              &(qk_part){.group = task / parts % g->groups,
                         .output = output,
                         .outputs = rest < b->outputs ? rest : b->outputs,
                         .x = b->r->inputs ? b->r->inputs : d->x,
                         .which = b->r->inputs ? NULL : b->samples,
                         .first = first,
                         .last = first + each < b->count ? first + each : b->count,
                         .position = piece * b->r->pieces.size,
                         .count = b->r->pieces.tables[piece].count},
              worker, panel);
}

enum { SUMMED = 2048 }; /* by a task */

/* to[i] = factor * sum over units of parts[unit, i], i < n */
typedef struct {
    float *to;
    const float *parts;
    int64_t units, n;
    double factor;
} unit_sum;

static void sum_task(void *context, int64_t task, int worker) {
    (void)worker;
    const unit_sum *s = context;
    const int64_t first = task * SUMMED, count = s->n - first < SUMMED ? s->n - first : SUMMED;
    double sum[SUMMED] = {0};
    for (int64_t u = 0; u < s->units; u++)
        for (int64_t i = 0; i < count; i++) sum[i] += s->parts[u * s->n + first + i];
    for (int64_t i = 0; i < count; i++) s->to[first + i] = (float)(s->factor * sum[i]);
}

static void add_units(qk_pool *pool, unit_sum s) { qk_pool_run(pool, sum_task, &s, qk_ceil_div(s.n, SUMMED)); }

void qk_reconstruct(qk_reconstruction *r, const float *weight, const float *bias, const int64_t *samples, int64_t count,
                    qk_reconstruction_result *result) {
    const qk_geometry *g = &r->data->geometry;
    const int64_t units = unit_count(r, count), inputs = g->groups * g->inputs;
    const double columns = (double)(count * positions_seen(r));
    const bool by_winograd = r->plan.pays && result->gradient && !result->mean_power;
    const int64_t outputs = by_winograd ? r->plan.outputs : g->outputs; /* of a task */
    batch b = {r, weight, bias, samples, count, units, by_winograd, outputs, result};
    if (by_winograd) qk_winograd_use_weight(&r->winograd, weight, r->pool);
    if (result->mean_power) memset(r->power, 0, (size_t)(units * inputs) * sizeof *r->power);
    qk_pool_run(r->pool, unit_task, &b, takes_whole_samples(r->data) ? units : units * g->groups * parts_of(&b));
    result->loss = 0;
    for (int64_t row = 0; row < r->rows; row++) {
        double loss = 0, slope_power = 0;
        for (int64_t u = 0; u < units; u++) {
            loss += r->loss[u * r->rows + row] / columns;
            slope_power += r->slope_power[u * r->rows + row] / columns;
        }
        if (result->row_loss) result->row_loss[row] = loss;
        if (result->slope_power) result->slope_power[row] = slope_power;
        result->loss += loss;
    }
    for (int64_t i = 0; i < units * r->rows && result->target_power; i++)
        *result->target_power = (i ? *result->target_power : 0) + r->target_power[i] / columns;
    if (result->gradient)
        add_units(r->pool, (unit_sum){result->gradient, r->gradient, units, r->rows * g->inputs, 2 / columns});
    if (result->slope) add_units(r->pool, (unit_sum){result->slope, r->slope, units, r->rows, 2 / columns});
    for (int64_t i = 0; i < inputs && result->mean_power; i++) {
        result->mean_power[i] = 0;
        for (int64_t u = 0; u < units; u++) result->mean_power[i] += r->power[u * inputs + i] / columns;
    }
}

void qk_reconstruct_piece(const qk_reconstruction *r, const float *weight, const float *bias, int64_t sample,
                          const qk_piece_errors *to) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = r->data->geometry.inputs, O = r->data->geometry.outputs, first = to->group * O;
    const int64_t n = r->pieces.tables[to->piece].count;
    forward(to->error, weight + first * K, to->panel, O, K, n);
    for (int64_t o = 0; o < O; o++) {
        copy_target(to->target, r, sample, to->piece, first + o);
        to->target_sum[o] += kernels->sum(to->target, (size_t)n);
        to->target_squares[o] += kernels->sum_squares(to->target, (size_t)n);
        to->squares[o] += kernels->output_error(to->error + o * n, to->target, bias[first + o], (size_t)n);
    }
}
