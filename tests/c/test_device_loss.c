/* A layer's loss and its gradient on a device are those of the processor. */
#include "device_cases.h"
#include "loss/device_loss.h"
#include "reconstruction_cases.h"

/* All of `a` within a part of the largest of `b`. */
#define CHECK_NEAR(a, b, n, tolerance)                                      \
    do {                                                                    \
        double most_ = 0, apart_ = 0;                                       \
        for (int64_t i_ = 0; i_ < (n); i_++) {                              \
            most_ = fmax(most_, fabs((double)(b)[i_]));                     \
            apart_ = fmax(apart_, fabs((double)(a)[i_] - (double)(b)[i_])); \
        }                                                                   \
        CHECK(apart_ <= (tolerance) * most_);                               \
    } while (0)

/* What stands behind the layer, and how near two ways are that differ in the last bits of float32: where values are
 * rounded or slopes jump, single ones turn. */
static const struct {
    qk_output_stage stage;
    double tolerance;
} stages[] = {
    {{.activation = {.kind = QK_NO_ACTIVATION}}, 1e-5},
    {{.activation = {.kind = QK_CLIP, .a = 0, .b = 1.5f}}, 1e-3},
    {{.activation = {.kind = QK_LEAKY_RELU, .a = 0.1f}}, 1e-3},
    {{.activation = {.kind = QK_SIGMOID}}, 1e-5},
    {{.activation = {.kind = QK_TANH}}, 1e-5},
    {{.activation = {.kind = QK_GELU}}, 1e-5},
    {{.activation = {.kind = QK_GELU_TANH}}, 1e-5},
    {{.activation = {.kind = QK_HARD_SIGMOID, .a = 0.2f, .b = 0.5f}}, 1e-3},
    {{.activation = {.kind = QK_HARD_SWISH}}, 1e-5},
    {{.activation = {.kind = QK_SILU}}, 1e-5},
    {{.activation = {.kind = QK_NO_ACTIVATION}, .quantized = true, .affine = {0.02f, 7}, .grid = {-40, 90}}, 3e-3},
    {{.activation = {.kind = QK_CLIP, .a = 0, .b = INFINITY},
      .folded = true,
      .quantized = true,
      .affine = {0.01f, 0},
      .grid = {0, 255}},
     3e-3},
};
enum { STAGES = sizeof stages / sizeof *stages };

static void compare(qk_device *d, const ref_case *c, int dtype, int stage, int64_t panel_numbers) {
    fixture f = fixture_new(c, (qk_dtype)dtype, &stages[stage].stage, 1);
    const double tolerance = stages[stage].tolerance;
    int64_t *samples = backwards(&f);
    const int64_t n = f.data->count;
    const float *bias = dtype == QK_I8 ? NULL : f.bias;
    qk_reconstruction_result have = result_new(&f), again = result_new(&f), want = result_new(&f);
    qk_device_loss l;
    reconstruct(&f, bias, samples, n, &want);
    CHECK(qk_device_loss_applies(f.data, n));
    qk_device_take(d);
    CHECK(qk_device_loss_init(&l, f.data, d, (qk_device_calls){n, 0, 1, panel_numbers}) == QK_OK);
    CHECK(qk_device_reconstruct(&l, f.weight, bias, samples, n, &have) == QK_OK);
    CHECK(qk_device_reconstruct(&l, f.weight, bias, samples, n, &again) == QK_OK);
    qk_device_loss_destroy(&l);
    CHECK(qk_device_release(d) == QK_OK);
    CHECK_CLOSE(have.loss / want.loss, 1, tolerance);
    CHECK_NEAR(have.row_loss, want.row_loss, f.rows, tolerance);
    CHECK_NEAR(have.gradient, want.gradient, f.rows * f.K, tolerance);
    CHECK_NEAR(have.slope, want.slope, f.rows, 2 * tolerance);
    CHECK_NEAR(have.mean_power, want.mean_power, f.inputs, 1e-6);
    CHECK_NEAR(have.target_power, want.target_power, 1, 1e-5);
    CHECK_NEAR(have.slope_power, want.slope_power, f.rows, tolerance);
    check_same_result(&f, &have, &again);
    result_free(&have);
    result_free(&again);
    result_free(&want);
    fixture_free(&f);
    free(samples);
}

static void every_geometry_gives_what_the_processor_does(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    for (int i = 0; i < CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) compare(d, case_of(i), dtype, 0, 0);
    qk_device_close(d);
}

static void every_stage_gives_what_the_processor_does(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    for (int stage = 0; stage < STAGES; stage++) compare(d, &ref_cases[5], QK_U8, stage, 0);
    qk_device_close(d);
}

/* Panels of 512 columns, of which these layers have several. */
static void panels_add_up(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    for (int i = 0; i < CASES; i++) compare(d, case_of(i), QK_U8, i % STAGES, 1);
    qk_device_close(d);
}

static void slopes_are_those_of_each_output(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    const float slopes[] = {0.5f, 0.1f, 0.2f, 2, 0};
    const qk_output_stage prelu = {.activation = {.kind = QK_LEAKY_RELU}, .slopes = slopes};
    fixture f = fixture_new(&ref_cases[5], QK_F32, &prelu, 1);
    const int64_t samples[] = {1, 0};
    qk_reconstruction_result have = result_new(&f), want = result_new(&f);
    qk_device_loss l;
    reconstruct(&f, f.bias, samples, 2, &want);
    qk_device_take(d);
    CHECK(qk_device_loss_init(&l, f.data, d, (qk_device_calls){2, 0, 1, 0}) == QK_OK);
    CHECK(qk_device_reconstruct(&l, f.weight, f.bias, samples, 2, &have) == QK_OK);
    qk_device_loss_destroy(&l);
    CHECK(qk_device_release(d) == QK_OK);
    CHECK_NEAR(have.row_loss, want.row_loss, f.rows, 1e-3);
    CHECK_NEAR(have.gradient, want.gradient, f.rows * f.K, 1e-3);
    result_free(&have);
    result_free(&want);
    fixture_free(&f);
    qk_device_close(d);
}

static void softmax_and_sizes_beyond_32_bits_are_the_processors(void) {
    const qk_output_stage softmax = {.activation = {.kind = QK_SOFTMAX}, .axis = -1};
    fixture f = fixture_new(&ref_cases[0], QK_F32, &softmax, 1), g = fixture_new(&ref_cases[0], QK_F32, NULL, 1);
    CHECK(!qk_device_loss_applies(f.data, 1));
    CHECK(qk_device_loss_applies(g.data, 1));
    CHECK(!qk_device_loss_applies(g.data, INT64_C(1) << 31));
    fixture_free(&f);
    fixture_free(&g);
}

/* Memory of the device, at any place. */
static void memory_may_run_out(void) {
    qk_device *first = device_new(0);
    if (!first) return;
    qk_device_close(first);
    fixture f = fixture_new(&ref_cases[5], QK_U8, NULL, 1);
    int64_t most = 1000;
    qk_status status = QK_E_DEVICE_NOMEM;
    for (; status == QK_E_DEVICE_NOMEM; most += most) {
        qk_device *d = device_new(most);
        qk_device_loss l;
        qk_device_take(d);
        status = qk_device_loss_init(&l, f.data, d, (qk_device_calls){2, 0, 1, 0});
        qk_device_loss_destroy(&l);
        CHECK(qk_device_release(d) == status);
        qk_device_close(d);
    }
    CHECK(status == QK_OK);
    CHECK(most > 4000);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(every_geometry_gives_what_the_processor_does), QK_TEST(every_stage_gives_what_the_processor_does),
         QK_TEST(panels_add_up), QK_TEST(slopes_are_those_of_each_output),
         QK_TEST(softmax_and_sizes_beyond_32_bits_are_the_processors), QK_TEST(memory_may_run_out))
