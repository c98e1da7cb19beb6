/* Memory for the moments of a layer. */
#ifndef QK_MOMENTS_H
#define QK_MOMENTS_H

#include "qk.h"
#include "qk_test.h"

typedef struct {
    int64_t rows;
    double *gram, *cross, *mean_x, *mean_y, *power;
} moments;

static inline moments moments_new(const qk_geometry *g) {
    const int64_t inputs = g->groups * g->inputs, outputs = g->groups * g->outputs;
    return (moments){.gram = MEMORY(double, inputs * g->inputs),
                     .cross = MEMORY(double, outputs * g->inputs),
                     .mean_x = MEMORY(double, inputs),
                     .mean_y = MEMORY(double, outputs),
                     .power = MEMORY(double, outputs)};
}

static inline void moments_free(moments m) {
    free(m.gram);
    free(m.cross);
    free(m.mean_x);
    free(m.mean_y);
    free(m.power);
}

#endif
