#include "loss/dataset_moments.h"

#include "base/memory.h"
#include "ops/output_stage.h"
#include "ops/panel.h"

static const double MOST_BYTES = 64 << 20;

bool qk_dataset_moments_apply(const qk_training_data *d) {
    const qk_geometry *g = &d->geometry;
    const double bytes = (double)g->groups * (double)g->inputs * (double)g->inputs * sizeof(double);
    qk_affine affine;
    return qk_stage_is_plain(&d->stage) && qk_bytes_of(d->x, &affine) && bytes <= MOST_BYTES;
}

/* Whether a sample's data begins where that of the one before it ends. */
static bool follows(const qk_training_data *d, int64_t sample, int64_t before) {
    return (const uint8_t *)d->x[sample].data == (const uint8_t *)d->x[before].data + d->extent.x_sample &&
           (const float *)d->y[sample].data == (const float *)d->y[before].data + d->extent.y_sample;
}

/* In as few pieces as the memory of the samples allows. */
static qk_status feed(qk_layer *layer, const qk_training_data *d, const int64_t *samples, int64_t count,
                      qk_pool *pool) {
    for (int64_t i = 0, end; i < count; i = end) {
        qk_tensor x = d->x[samples[i]], y = d->y[samples[i]];
        for (end = i + 1; end < count && follows(d, samples[end], samples[end - 1]); end++) x.dims[0]++, y.dims[0]++;
        QK_TRY(qk_layer_feed(layer, &x, &y, pool));
    }
    return qk_layer_flush(layer, pool);
}

qk_status qk_dataset_moments_init(qk_quadratic *q, const qk_training_data *d, const int64_t *samples, int64_t count,
                                  qk_pool *pool) {
    const qk_row_choice all = {.samples = count, .max_rows = count * d->extent.positions};
    qk_layer *layer;
    QK_TRY(qk_layer_new(&layer, &d->geometry, &all, true));
    qk_status status = feed(layer, d, samples, count, pool);
    if (status == QK_OK) status = qk_quadratic_init(q, layer, QK_FITTED, true);
    if (status == QK_OK) qk_quadratic_centre(q);
    qk_layer_free(layer);
    return status;
}
