#include "training/step_loss.h"

#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "base/sizes.h"

enum { SAMPLES_PER_LOOK = 16 }; /* between two questions whether to cancel */

static bool mixes(const qk_training_problem *p) { return p->options->drop_ratio < 1; }

/* Neighbouring positions are alike: a step hardly loses anything where it leaves out most of a large sample. */
static int64_t stride_of(const qk_step_loss *s) {
    const qk_training_problem *p = s->problem;
    const int64_t all = p->options->batch_size * p->data->extent.positions, wanted = p->options->step_positions;
    if (wanted == 0 || p->data->stage.activation.kind == QK_SOFTMAX) return 1;
    return qk_larger(1, qk_smaller(all / wanted, s->direct.pieces.count));
}

qk_status qk_step_loss_init(qk_step_loss *s, const qk_training_problem *p, bool bias_moves) {
    const int64_t batch = p->options->batch_size;
    *s = (qk_step_loss){.problem = p, .random = qk_random_stream(p->options->seed, 0)};
    if (batch > p->count[QK_FITTED] || (mixes(p) && !p->data->x_float[0].data)) return QK_E_ARG;
    s->order = QK_NEW(int64_t, p->count[QK_FITTED]);
    s->found.gradient = QK_NEW(float, p->weights);
    if (bias_moves) s->found.slope = QK_NEW(float, p->rows);
    if (!s->order || !s->found.gradient || (bias_moves && !s->found.slope)) return QK_E_NOMEM;
    memcpy(s->order, p->samples[QK_FITTED], (size_t)p->count[QK_FITTED] * sizeof *s->order);
    QK_TRY(qk_reconstruction_init(&s->direct, p->data, batch, batch, p->pool));
    if (mixes(p)) QK_TRY(qk_qdrop_init(&s->qdrop, p->data, p->options->drop_ratio, p->options->seed, batch));
    s->direct.inputs = s->qdrop.samples;
    s->direct.stride = stride_of(s);
    return QK_OK;
}

void qk_step_loss_destroy(qk_step_loss *s) {
    qk_reconstruction_destroy(&s->direct);
    qk_sample_grams_destroy(&s->grams);
    qk_gram_loss_destroy(&s->gram_loss);
    qk_qdrop_destroy(&s->qdrop);
    free(s->order);
    free(s->found.gradient);
    free(s->found.slope);
}

static bool uses_grams(const qk_step_loss *s, qk_loss_way way) {
    const qk_training_problem *p = s->problem;
    qk_affine affine;
    const qk_gram_loss_use use = {p->count[QK_FITTED], p->options->batch_size, p->options->iterations,
                                  s->direct.plan.pays, qk_bytes_of(p->data->x, &affine)};
    if (!qk_stage_is_plain(&p->data->stage) || mixes(p) || way == QK_DIRECTLY) return false;
    return way == QK_BY_GRAMS || qk_gram_loss_pays(&p->data->geometry, p->data->extent.positions, use);
}

qk_status qk_step_loss_choose_way(qk_step_loss *s, qk_loss_way way, const qk_reconstruction *on, const float *bias) {
    const qk_training_problem *p = s->problem;
    const int64_t *samples = p->samples[QK_FITTED], count = p->count[QK_FITTED];
    if (!(s->by_grams = uses_grams(s, way))) return QK_OK;
    QK_TRY(qk_sample_grams_init(&s->grams, on, p->start->weight, bias, s->found.slope != NULL, count));
    QK_TRY(qk_gram_loss_init(&s->gram_loss, &s->grams, p->options->batch_size));
    for (int64_t i = 0; i < count; i += SAMPLES_PER_LOOK) {
        if (i > 0 && qk_is_cancelled(p)) return QK_E_CANCELLED;
        qk_sample_grams_add(&s->grams, samples + i, count - i < SAMPLES_PER_LOOK ? count - i : SAMPLES_PER_LOOK);
    }
    return QK_OK;
}

/* All samples take their turn in a shuffled order before it is shuffled anew, which leaves less noise in the sum of the
 * steps than drawing each step by itself. Those at the end that do not fill a batch are left out. */
const int64_t *qk_step_loss_draw(qk_step_loss *s) {
    const int64_t count = s->problem->count[QK_FITTED], each = s->problem->options->batch_size;
    int64_t *order = s->order;
    if (s->drawn + each > count) s->drawn = 0;
    for (int64_t i = 0; i < count && s->drawn == 0; i++) {
        const int64_t j = i + (int64_t)qk_random_below(&s->random, (uint64_t)(count - i)), sample = order[i];
        order[i] = order[j];
        order[j] = sample;
    }
    s->drawn += each;
    return order + s->drawn - each;
}

void qk_step_loss_find(qk_step_loss *s, int64_t it, const qk_float_layer *layer) {
    const qk_training_problem *p = s->problem;
    const int64_t *samples = qk_step_loss_draw(s), count = p->options->batch_size;
    if (s->direct.stride > 1) s->direct.first_piece = (int64_t)qk_random_below(&s->random, (uint64_t)s->direct.stride);
    if (mixes(p)) qk_qdrop_draw(&s->qdrop, samples, count, it, p->pool);
    if (s->by_grams)
        qk_gram_loss_find(&s->gram_loss, layer->weight, layer->bias, samples, count, &s->found);
    else
        qk_reconstruct(&s->direct, layer->weight, layer->bias, samples, count, &s->found);
}
