/* Loss and gradient of a step: which samples it takes, from which graph their inputs come, and how it is computed. */
#ifndef QK_STEP_LOSS_H
#define QK_STEP_LOSS_H

#include "base/random.h"
#include "loss/gram_loss.h"
#include "loss/qdrop.h"
#include "loss/reconstruction.h"
#include "training/training_problem.h"

/* How a step finds loss and gradient, where they are quadratic: qk_train takes what is cheaper. */
typedef enum { QK_AS_IT_PAYS, QK_DIRECTLY, QK_BY_GRAMS } qk_loss_way;

typedef struct {
    const qk_training_problem *problem;
    int64_t *order, drawn; /* the fitted samples as they take their turn; how many have */
    qk_random random;
    qk_qdrop qdrop;           /* of drop_ratio below 1 */
    qk_reconstruction direct; /* loss and gradient from the samples, */
    bool by_grams;            /* or from their Gram matrices: */
    qk_sample_grams grams;
    qk_gram_loss gram_loss;
    qk_reconstruction_result found; /* of the last step: loss, gradient, and slope unless the bias stays (NULL) */
} qk_step_loss;

/* bias_moves: the slope by the bias is wanted, too. qk_step_loss_destroy after a failure, too. */
qk_status qk_step_loss_init(qk_step_loss *s, const qk_training_problem *p, bool bias_moves);
void qk_step_loss_destroy(qk_step_loss *s);
/* Makes the Gram matrices if that is the way, or the cheaper one: at the start's float weight, as the loops do not go
 * far from there, and at the bias (rows). on: of the same samples; it must outlive s. QK_E_CANCELLED. */
qk_status qk_step_loss_choose_way(qk_step_loss *s, qk_loss_way way, const qk_reconstruction *on, const float *bias);
/* The samples of the next step, a batch of them. */
const int64_t *qk_step_loss_draw(qk_step_loss *s);
/* The next samples, for step number it: their loss and its gradient are in `found`. */
void qk_step_loss_find(qk_step_loss *s, int64_t it, const qk_float_layer *layer);

#endif
