/* What the tests of least squares share. */
#ifndef QK_LEAST_SQUARES_CASES_H
#define QK_LEAST_SQUARES_CASES_H

#include "quantized_layer.h"

static inline void feed_layer(fixture *f) {
    qk_layer_free(f->layer);
    CHECK(qk_layer_new(&f->layer, &f->geometry, &f->choice, true) == QK_OK);
    CHECK(qk_layer_feed(f->layer, &f->x, &f->y, f->pool) == QK_OK);
    CHECK(qk_layer_flush(f->layer, f->pool) == QK_OK);
}

static inline fixture fixture_new(const ref_case *c, uint64_t seed, int threads) {
    fixture f = fixture_of(c, 12, seed, threads);
    f.choice = (qk_row_choice){.samples = 12, .max_rows = 600, .holdout = 3};
    feed_layer(&f);
    return f;
}

static const double dampings[] = {1e-4, 1e-2};

static inline qk_least_squares_options options_of(qk_rounding_range rounding, bool update_bias) {
    return (qk_least_squares_options){.rounding = rounding,
                                      .update_bias = update_bias,
                                      .max_sweeps = 20,
                                      .damping = dampings,
                                      .damping_count = 2,
                                      .part_from = QK_PART_FROM};
}

static inline qk_status solve(fixture *f, const qk_least_squares_options *options, qk_least_squares_result *result) {
    *result = (qk_least_squares_result){.weight_q = f->new_weight, .bias_q = f->new_bias};
    return qk_least_squares(f->layer, &f->start, options, f->pool, result);
}

/* Matrix, matrices, a matrix of several blocks of lanes, 1-D, 3x3, grouped, depthwise, depth multiplier. */
static const int some_cases[] = {0, 1, 2, 3, 5, 11, 12, 14};
enum { SOME_CASES = sizeof some_cases / sizeof *some_cases };

#endif
