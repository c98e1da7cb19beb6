#include "loss/qdrop.h"

#include <string.h>

#include "base/memory.h"
#include "base/pool.h"
#include "base/random.h"
#include "kernels/kernels.h"

qk_status qk_qdrop_init(qk_qdrop *m, const qk_training_data *data, double ratio, uint64_t seed, int64_t most) {
    *m = (qk_qdrop){.data = data, .ratio = ratio, .seed = seed, .size = data->extent.x_sample, .most = most};
    m->values = QK_NEW(float, most, m->size);
    m->samples = QK_NEW(qk_tensor, most);
    if (!m->values || !m->samples) return QK_E_NOMEM;
    for (int64_t i = 0; i < most; i++) {
        m->samples[i] = data->x_float[0];
        m->samples[i].data = m->values + i * m->size;
    }
    return QK_OK;
}

void qk_qdrop_destroy(qk_qdrop *m) {
    free(m->values);
    free(m->samples);
}

static void mix_task(void *context, int64_t i, int worker) {
    (void)worker;
    qk_qdrop *m = context;
    const qk_tensor *x = &m->data->x[m->chosen[i]];
    const float *x_float = m->data->x_float[m->chosen[i]].data;
    const size_t n = (size_t)m->size;
    float *to = m->values + i * m->size;
    switch (x->dtype) {
    case QK_F32: memcpy(to, x->data, n * sizeof *to); break;
    case QK_U8: qk_kernels_get()->dequantize_u8(to, x->data, n, x->affine); break;
    case QK_I8: qk_kernels_get()->dequantize_i8(to, x->data, n, x->affine); break;
    }
    qk_random random = qk_qdrop_stream(m->seed, m->step, m->most, i);
    const double below = m->ratio * 0x1p53;
    for (size_t j = 0; j < n; j++)
        if (!((double)(qk_random_next(&random) >> 11) < below)) to[j] = x_float[j];
}

void qk_qdrop_draw(qk_qdrop *m, const int64_t *chosen, int64_t count, int64_t step, qk_pool *pool) {
    m->chosen = chosen;
    m->step = step;
    qk_pool_run(pool, mix_task, m, count);
}
