/* drop_ratio: the inputs of a step, each taken from the quantized graph or from the float graph. (QDrop, 2203.05740) */
#ifndef QK_INPUT_MIXING_H
#define QK_INPUT_MIXING_H

#include "finetune/training_data.h"

typedef struct {
    const qk_training_data *data;
    double ratio; /* the probability of the quantized graph's */
    uint64_t seed;
    int64_t size;       /* values of a sample */
    float *values;      /* (most samples, size) */
    qk_tensor *samples; /* (most samples), over `values` */
    /* of the current step */
    const int64_t *chosen;
    int64_t step, most;
} qk_input_mixing;

qk_status qk_input_mixing_init(qk_input_mixing *m, const qk_training_data *data, double ratio, uint64_t seed,
                               int64_t most);
void qk_input_mixing_destroy(qk_input_mixing *m);
/* Fills `samples` with the chosen ones, `count` of them; the draw depends on seed, step and place only. */
void qk_mix_inputs(qk_input_mixing *m, const int64_t *chosen, int64_t count, int64_t step, qk_pool *pool);

#endif
