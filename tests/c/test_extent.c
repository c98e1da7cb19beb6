#include "ops/extent.h"

#include "reference.h"

static const int64_t sizes[] = {1, 2, 3, 5, 8, 13, 16};

static void check_axis(const qk_geometry *g, int64_t in) {
    const qk_tensor x = {.ndim = 3, .dims = {2, 1, in}};
    const ref_axis axis = ref_axis_of(g, 0, in);
    qk_extent e;
    CHECK(qk_extent_of(g, &x, NULL, &e) == QK_OK);
    CHECK(e.out[0] == axis.out);
    CHECK(e.pad[0] == axis.pad);
    CHECK(e.positions == axis.out);
    CHECK(e.samples == 2 && e.channels == 1 && e.taps == g->kernel[0]);
}

static void every_auto_pad_follows_onnx(void) {
    for (int auto_pad = QK_PAD_EXPLICIT; auto_pad <= QK_PAD_VALID; auto_pad++)
        for (int size = 0; size < 7; size++)
            for (int64_t kernel = 1; kernel <= 5; kernel++)
                for (int64_t stride = 1; stride <= 4; stride++)
                    for (int64_t dilation = 1; dilation <= 3; dilation++)
                        for (int64_t pads = 0; pads < (auto_pad == QK_PAD_EXPLICIT ? 9 : 1); pads++) {
                            const qk_geometry g = {.spatial = 1,
                                                   .auto_pad = (qk_auto_pad)auto_pad,
                                                   .groups = 1,
                                                   .outputs = 1,
                                                   .inputs = kernel,
                                                   .kernel = {kernel},
                                                   .stride = {stride},
                                                   .dilation = {dilation},
                                                   .pad_begin = {pads / 3},
                                                   .pad_end = {pads % 3}};
                            check_axis(&g, sizes[size]);
                        }
}

static void transposed_sizes_follow_onnx(void) {
    for (int auto_pad = QK_PAD_EXPLICIT; auto_pad <= QK_PAD_VALID; auto_pad++)
        for (int size = 0; size < 7; size++)
            for (int64_t kernel = 1; kernel <= 5; kernel++)
                for (int64_t stride = 1; stride <= 4; stride++)
                    for (int64_t dilation = 1; dilation <= 3; dilation++)
                        for (int64_t more = 0; more < 4 * 9; more++) {
                            const int64_t window = (kernel - 1) * dilation + 1, pads = more % 9;
                            qk_geometry g = {.spatial = 1,
                                             .auto_pad = (qk_auto_pad)auto_pad,
                                             .groups = 1,
                                             .outputs = 1,
                                             .inputs = kernel,
                                             .kernel = {kernel},
                                             .stride = {stride},
                                             .dilation = {dilation},
                                             .pad_begin = {pads / 3},
                                             .pad_end = {pads % 3},
                                             .transposed = true,
                                             .output_padding = {more / 9 % 2}};
                            if (more / 9 > 1) g.output_shape[0] = (sizes[size] - 1) * stride + window - pads % 5;
                            if (ref_axis_of(&g, 0, sizes[size]).out > 0 && g.output_shape[0] >= 0)
                                check_axis(&g, sizes[size]);
                        }
}

static void pads_may_leave_no_output(void) {
    const qk_geometry g = {1, QK_PAD_EXPLICIT, 1, 1, 3, {3}, {2}, {1}, {4}, {4}, true};
    const qk_tensor x = {.ndim = 3, .dims = {1, 1, 3}};
    qk_extent e;
    CHECK(qk_extent_of(&g, &x, NULL, &e) == QK_OK);
    CHECK(e.out[0] == 0 && e.positions == 0);
}

static void an_empty_input_has_no_position(void) {
    const qk_geometry geometries[] = {{2, QK_PAD_EXPLICIT, 1, 1, 1, {1, 1}, {1, 1}, {1, 1}, {2, 0}, {0, 0}},
                                      {2, QK_PAD_VALID, 1, 1, 1, {1, 1}, {1, 1}, {1, 1}, {0}, {0}, true, {0}, {3, 3}}};
    const qk_tensor x = {.ndim = 4, .dims = {1, 1, 0, 3}};
    for (int i = 0; i < 2; i++) {
        qk_extent e;
        CHECK(qk_extent_of(&geometries[i], &x, NULL, &e) == QK_OK);
        CHECK(e.positions == 0);
    }
}

static void strides_address_every_value(void) {
    for (int i = 0; i < REF_CASES; i++) {
        const ref_case *c = &ref_cases[i];
        const qk_geometry *g = &c->geometry;
        qk_random r = {(uint64_t)i};
        qk_tensor x = ref_tensor(&r, QK_F32, c->x_ndim, c->x_dims), y = ref_target(&r, g, &x);
        qk_extent e;
        CHECK(qk_extent_of(g, &x, &y, &e) == QK_OK);
        CHECK(e.positions == ref_positions(g, &x));
        CHECK(e.samples * e.x_sample == ref_elements(&x));
        CHECK(e.samples * e.y_sample == ref_elements(&y));
        const int64_t sample = e.samples - 1, n = g->groups * g->outputs;
        float *rows = MEMORY(float, e.y_sample);
        ref_outputs(g, &y, sample, rows);
        for (int64_t p = 0; p < e.positions; p++)
            for (int64_t o = 0; o < n; o++)
                CHECK(rows[p * n + o] ==
                      ((const float *)y.data)[sample * e.y_sample + o * e.y_output + p * e.y_position]);
        free(rows);
        ref_free(&x);
        ref_free(&y);
    }
}

static void a_window_larger_than_the_input_has_no_position(void) {
    const qk_geometry g = {.spatial = 1,
                           .auto_pad = QK_PAD_VALID,
                           .groups = 1,
                           .outputs = 1,
                           .inputs = 5,
                           .kernel = {5},
                           .stride = {1},
                           .dilation = {1}};
    const qk_tensor x = {.ndim = 3, .dims = {1, 1, 4}};
    qk_extent e;
    CHECK(qk_extent_of(&g, &x, NULL, &e) == QK_OK);
    CHECK(e.positions == 0);
}

static void arrays_that_do_not_fit_are_refused(void) {
    const qk_geometry conv = {2, QK_PAD_EXPLICIT, 2, 3, 18, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
    const qk_geometry spread = {1, QK_PAD_EXPLICIT, 1, 1, 1, {1}, {1}, {1}, {0}, {0}, true, {0}, {1 << 12}};
    const qk_geometry matrix = {.groups = 1, .inputs = 7, .outputs = 3};
    const struct {
        const qk_geometry *geometry;
        qk_tensor x, y;
    } wrong[] = {
        {&conv, {.ndim = 3, .dims = {1, 4, 9}}, {.ndim = 3, .dims = {1, 6, 9}}},       /* an axis is missing */
        {&conv, {.ndim = 4, .dims = {1, 5, 9, 9}}, {.ndim = 4, .dims = {1, 6, 9, 9}}}, /* channels */
        {&conv, {.ndim = 4, .dims = {1, 6, 9, 9}}, {.ndim = 4, .dims = {1, 6, 9, 9}}}, /* channels per group */
        {&conv, {.ndim = 4, .dims = {1, 4, 9, 9}}, {.ndim = 4, .dims = {1, 5, 9, 9}}}, /* outputs */
        {&conv, {.ndim = 4, .dims = {1, 4, 9, 9}}, {.ndim = 4, .dims = {2, 6, 9, 9}}}, /* samples */
        {&conv, {.ndim = 4, .dims = {1, 4, 9, 9}}, {.ndim = 4, .dims = {1, 6, 9, 8}}}, /* positions */
        {&conv, {.ndim = 4, .dims = {1 << 20, 4, 32, 32}}, {.ndim = 4, .dims = {1 << 20, 6, 32, 32}}}, /* 2^32 values */
        {&spread, {.ndim = 3, .dims = {1 << 20, 1, 1}}, {.ndim = 3, .dims = {1 << 20, 1, 1 << 12}}},   /* of y alone */
        {&spread, {.ndim = 3, .dims = {1, 1, 3}}, {.ndim = 3, .dims = {1, 1, 4095}}},                  /* positions */
        {&matrix, {.ndim = 1, .dims = {7}}, {.ndim = 1, .dims = {3}}},
        {&matrix, {.ndim = 2, .dims = {4, 6}}, {.ndim = 2, .dims = {4, 3}}},
        {&matrix, {.ndim = 2, .dims = {4, 7}}, {.ndim = 2, .dims = {4, 2}}},
        {&matrix, {.ndim = 2, .dims = {4, 7}}, {.ndim = 2, .dims = {5, 3}}},
        {&matrix, {.ndim = 3, .dims = {4, 2, 7}}, {.ndim = 3, .dims = {4, 1, 3}}},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        qk_extent e;
        CHECK(qk_extent_of(wrong[i].geometry, &wrong[i].x, &wrong[i].y, &e) == QK_E_SHAPE);
    }
}

QK_TESTS(QK_TEST(every_auto_pad_follows_onnx), QK_TEST(transposed_sizes_follow_onnx), QK_TEST(pads_may_leave_no_output),
         QK_TEST(an_empty_input_has_no_position), QK_TEST(strides_address_every_value),
         QK_TEST(a_window_larger_than_the_input_has_no_position), QK_TEST(arrays_that_do_not_fit_are_refused))
