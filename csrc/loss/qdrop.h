/* drop_ratio: the inputs of a step, each taken from the quantized graph or from the float graph. (QDrop, 2203.05740) */
#ifndef QK_QDROP_H
#define QK_QDROP_H

#include "base/random.h"
#include "loss/training_data.h"

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
} qk_qdrop;

qk_status qk_qdrop_init(qk_qdrop *m, const qk_training_data *data, double ratio, uint64_t seed, int64_t most);
void qk_qdrop_destroy(qk_qdrop *m);
/* The random numbers of sample number i of step number `step`, of at most `most` samples. */
static inline qk_random qk_qdrop_stream(uint64_t seed, int64_t step, int64_t most, int64_t i) {
    return qk_random_stream(seed, (uint64_t)(step * most + i + 1));
}
/* Fills `samples` with the chosen ones, `count` of them; the draw depends on seed, step and place only. */
void qk_qdrop_draw(qk_qdrop *m, const int64_t *chosen, int64_t count, int64_t step, qk_pool *pool);

#endif
