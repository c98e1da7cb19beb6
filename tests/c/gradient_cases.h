/* What the tests of the gradient loops share. */
#ifndef QK_GRADIENT_CASES_H
#define QK_GRADIENT_CASES_H

#include "quantized_layer.h"

enum { SAMPLES = 12, HOLDOUT = 3, FITTED = 8, STEPS = 200 };

static inline void feed(fixture *f, int holdout) {
    qk_training_data_free(f->data);
    CHECK(qk_training_data_new(&f->data, &f->geometry, NULL, holdout) == QK_OK);
    CHECK(qk_training_data_add(f->data, &f->x, NULL, &f->y) == QK_OK);
}

static inline fixture fixture_new(const ref_case *c, uint64_t seed, int threads) {
    fixture f = fixture_of(c, SAMPLES, seed, threads);
    feed(&f, HOLDOUT);
    return f;
}

static inline qk_gradient_options options_of(qk_gradient_method method, bool update_bias) {
    return (qk_gradient_options){.method = method,
                                 .update_bias = update_bias,
                                 .batch_size = 4,
                                 .iterations = STEPS,
                                 .learning_rate = method == QK_ADAROUND ? 0.05 : 0.002,
                                 .reg_param = 0.01,
                                 .warm_start = 0.2,
                                 .drop_ratio = 1,
                                 .beta_start = 20,
                                 .beta_end = 2,
                                 .seed = 3};
}

static inline qk_status train(fixture *f, const qk_gradient_options *options, qk_gradient_result *result) {
    *result = (qk_gradient_result){.weight_q = f->new_weight, .bias_q = f->new_bias};
    return qk_train(f->data, &f->start, options, f->pool, result);
}

#endif
