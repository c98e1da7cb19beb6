/* Outputs and weight gradient of 2-D convolutions 3x3 by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray,
 * arXiv 1509.09308): a quarter of im2col's multiplications, and a decimal digit less, 1e-5 of the largest value. That
 * is for the steps of the gradient loops, which are stochastic anyway, not for judging.
 *
 * Outputs are cut into tiles of 4x4, each of which sees 6x6 inputs. A tile d of inputs and a filter g are transformed
 * to 36 elements each, V = B' d B and U = G g G' (kernels/winograd.inc). For each element f the tiles' transformed
 * outputs are a product of matrices, U_f (O, C) V_f (C, tiles), and so is the gradient by U_f. Beyond the right and the
 * lower edge of the image outputs are dropped, and their errors are zero. */
#ifndef QK_WINOGRAD_H
#define QK_WINOGRAD_H

#include "loss/training_data.h"

/* How steps are cut into parts that threads can share: by sizes alone. */
typedef struct {
    bool pays;       /* it applies to the layer and is faster than im2col; else the rest is 0 */
    int64_t columns; /* positions of a part: of whole samples, or whole rows of tiles of one */
    int64_t outputs; /* of a part */
} qk_winograd_plan;
/* For steps on so many samples. */
qk_winograd_plan qk_winograd_plan_of(const qk_training_data *data, int64_t samples);

typedef struct {
    const qk_training_data *data;
    int64_t channels, outputs;      /* C, O: of a group */
    int64_t tile_columns;           /* of a sample */
    int64_t most_tiles;             /* of a part */
    int64_t distance, scratch_size; /* of an element's filters; of a thread */
    float *filters;                 /* (groups, 36, distance): U (O, C) */
    float *scratch;                 /* (threads, scratch_size) */
    int32_t *places; /* (threads, 2, most_tiles): where tiles begin in their planes, those of inputs, of outputs */
    int32_t *nines;  /* 0, 9, 18, ..: where filters begin */
} qk_winograd;

/* For parts of at most the plan's size. qk_winograd_destroy after a failure, too; of zeroed memory it does nothing. */
qk_status qk_winograd_init(qk_winograd *w, const qk_training_data *data, const qk_winograd_plan *plan, int threads);
void qk_winograd_destroy(qk_winograd *w);

/* The weight (groups * O, C * 9) of the calls to come. */
void qk_winograd_use_weight(qk_winograd *w, const float *weight, qk_pool *pool);
/* out (outputs, n) = weight * inputs, where n = (last - first) * count columns of the part. */
void qk_winograd_forward(qk_winograd *w, const qk_part *part, int worker, float *out);
/* gradient (outputs, C * 9) = error (outputs, n) * inputs', of the part of this worker's last qk_winograd_forward. */
void qk_winograd_backward(qk_winograd *w, const qk_part *part, int worker, float *gradient, const float *error);

#endif
