/* From a layer's outputs to their errors, against loops in float64. */
#include "ops/output_stage.h"

#include "stage_reference.h"

static const int64_t lengths[] = {1, 2, 31, 511, 512, 513, 1024, 1300};
enum { LENGTHS = sizeof lengths / sizeof *lengths, ROWS = 3 };

/* ---- a line ---------------------------------------------------------------------------------- */

static void check_line(const qk_output_stage *stage, int64_t row, int64_t n) {
    const float bias = -0.25f;
    qk_random random = {(uint64_t)n};
    float *z = qk_floats(&random, n + 1, -3, 3), *target = qk_floats(&random, n + 1, -3, 3);
    float *before = MEMORY(float, n + 1), *y = MEMORY(float, n + 1);
    memcpy(before, z, (size_t)(n + 1) * sizeof *z);
    memcpy(y, target, (size_t)(n + 1) * sizeof *y);
    double power = 100, expected_power = 100, expected = 0;
    const double squares = qk_stage_line(stage, row, bias, z, target, (size_t)n, &power);
    for (int64_t i = 0; i < n; i++) {
        const ref_judged j = ref_judge(stage, row, before[i] + bias, y[i]);
        CHECK_CLOSE(target[i], j.target, 1e-6);
        CHECK_CLOSE(z[i], j.error * j.slope, 3e-6);
        expected += j.error * j.error;
        expected_power += j.slope * j.slope;
    }
    CHECK_CLOSE(squares, expected, 1e-5);
    CHECK_CLOSE(power, expected_power, 1e-5);
    CHECK(z[n] == before[n] && target[n] == y[n]);
    float *arrays[] = {z, target, before, y};
    for (int i = 0; i < 4; i++) free(arrays[i]);
}

/* Plain, behind 8 bits that hold everything, behind 4 bits with ends that some values lie outside of, folded. */
static void lines_of_every_activation(void) {
    for (int kind = 0; kind < REF_ACTIVATIONS; kind++)
        for (int mode = 0; mode < 4; mode++)
            for (int i = 0; i < LENGTHS; i++) {
                const qk_output_stage stage = {.activation = ref_activations[kind],
                                               .folded = mode == 3,
                                               .quantized = mode > 0,
                                               .affine = mode == 1 ? (qk_affine){0.0301f, 5} : (qk_affine){0.17f, 4},
                                               .grid = mode == 1 ? (qk_grid){.qmin = -128, .qmax = 127}
                                                                 : (qk_grid){.qmin = 0, .qmax = 15}};
                check_line(&stage, 0, lengths[i]);
            }
}

static void each_output_has_its_own_slope(void) {
    const float slopes[ROWS] = {-0.5f, 0, 0.25f};
    for (int64_t row = 0; row < ROWS; row++)
        for (int quantized = 0; quantized < 2; quantized++) {
            const qk_output_stage stage = {.activation = {QK_LEAKY_RELU, 77, 0},
                                           .slopes = slopes,
                                           .quantized = quantized,
                                           .affine = {0.2f, 0},
                                           .grid = {.qmin = -8, .qmax = 7}};
            check_line(&stage, row, 700);
        }
}

static void a_stage_is_plain_when_it_does_nothing(void) {
    CHECK(qk_stage_is_plain(&(qk_output_stage){.activation = {.kind = QK_NO_ACTIVATION}}));
    CHECK(!qk_stage_is_plain(&(qk_output_stage){.activation = {.kind = QK_CLIP}}));
    CHECK(!qk_stage_is_plain(&(qk_output_stage){.activation = {.kind = QK_SOFTMAX}}));
    CHECK(!qk_stage_is_plain(&(qk_output_stage){.quantized = true, .affine = {1, 0}}));
}

/* ---- softmax --------------------------------------------------------------------------------- */

/* One sample of Conv or of a matrix product. */
typedef struct {
    qk_geometry geometry;
    qk_tensor y;
} shape;
static const shape shapes[] = {
    {{.spatial = 1, .groups = 1, .outputs = 5}, {.ndim = 3, .dims = {1, 5, 7}}},
    {{.spatial = 2, .groups = 2, .outputs = 2}, {.ndim = 4, .dims = {1, 4, 3, 5}}},
    {{.spatial = 2, .groups = 1, .outputs = 1}, {.ndim = 4, .dims = {1, 1, 3, 2}}},
    {{.spatial = 3, .groups = 3, .outputs = 1}, {.ndim = 5, .dims = {1, 3, 2, 5, 4}}},
    {{.spatial = 0, .groups = 1, .outputs = 6}, {.ndim = 2, .dims = {1, 6}}},
    {{.spatial = 0, .groups = 1, .outputs = 4}, {.ndim = 3, .dims = {1, 9, 4}}},
    {{.spatial = 0, .groups = 1, .outputs = 3}, {.ndim = 5, .dims = {1, 2, 5, 4, 3}}},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* In which order the values lie: (rows, positions) for the core, as y has them for the reference. */
static int64_t place_in_y(const shape *s, int64_t row, int64_t position, int64_t positions) {
    return s->geometry.spatial ? row * positions + position : position * s->geometry.groups * s->geometry.outputs + row;
}

static void check_softmax(const shape *s, qk_output_stage stage, float size) {
    const int64_t rows = s->geometry.groups * s->geometry.outputs;
    int64_t count = 1;
    for (int i = 1; i < s->y.ndim; i++) count *= s->y.dims[i];
    const int64_t positions = count / rows;
    qk_random random = {(uint64_t)count};
    float *z = qk_floats(&random, count, -size, size), *target = qk_floats(&random, count, -size, size);
    float *error = MEMORY(float, count), *power = MEMORY(float, count);
    double *wide[6]; /* z, y, target, error, pulled, power */
    for (int i = 0; i < 6; i++) wide[i] = MEMORY(double, count);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t p = 0; p < positions; p++) {
            wide[0][place_in_y(s, r, p, positions)] = z[r * positions + p];
            wide[1][place_in_y(s, r, p, positions)] = target[r * positions + p];
        }
    ref_softmax_stage(&stage, &s->y, wide[0], wide[1], wide[2], wide[3], wide[4], wide[5]);
    qk_stage_softmax(&stage, qk_softmax_shape_of(&stage, &s->geometry, &s->y), z, target, error, power);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t p = 0; p < positions; p++) {
            const int64_t at = r * positions + p, in_y = place_in_y(s, r, p, positions);
            CHECK(fabs(target[at] - wide[2][in_y]) <= 1e-6);
            CHECK(fabs(error[at] - wide[3][in_y]) <= 1e-6);
            CHECK(fabs(z[at] - wide[4][in_y]) <= 1e-6);
            CHECK(fabs(power[at] - wide[5][in_y]) <= 1e-6);
            CHECK(power[at] >= 0);
        }
    float *arrays[] = {z, target, error, power};
    for (int i = 0; i < 4; i++) free(arrays[i]);
    for (int i = 0; i < 6; i++) free(wide[i]);
}

/* Alone; behind a grid from 0 to 1; behind one that ends at 0.4, so that some values lie outside. */
static void softmax_along_every_axis(void) {
    const float sizes[] = {0, 1, 4, 90}; /* from even shares to all in one */
    for (int i = 0; i < SHAPES; i++)
        for (int axis = 1; axis < shapes[i].y.ndim; axis++)
            for (int grid = 0; grid < 3; grid++)
                for (int size = 0; size < 4; size++) {
                    const qk_output_stage stage = {
                        .activation = {.kind = QK_SOFTMAX},
                        .axis = axis,
                        .quantized = grid > 0,
                        .affine = grid == 1 ? (qk_affine){1.0f / 255, -128} : (qk_affine){0.0401f, 0},
                        .grid = grid == 1 ? (qk_grid){.qmin = -128, .qmax = 127} : (qk_grid){.qmin = 0, .qmax = 10}};
                    check_softmax(&shapes[i], stage, sizes[size]);
                }
}

/* What is left of 1 is tiny, and so is its square; it is no less right for that. */
static void softmax_where_one_share_is_nearly_all(void) {
    const qk_output_stage stage = {.activation = {.kind = QK_SOFTMAX}, .axis = 1};
    const double rest = 1 / (1 + exp(10)), expected = 2 * pow((1 - rest) * rest, 2);
    float z[2] = {10, 0}, target[2] = {10, 0}, error[2], power[2];
    qk_stage_softmax(&stage, (qk_softmax_shape){1, 2, 1}, z, target, error, power);
    for (int i = 0; i < 2; i++) CHECK(fabs(power[i] - expected) <= 0.01 * expected);
}

static double squares_of(const double *z, const double *y, const qk_output_stage *stage, const qk_tensor *shape,
                         int64_t n) {
    double target[64], error[64], pulled[64], power[64], sum = 0;
    ref_softmax_stage(stage, shape, z, y, target, error, pulled, power);
    for (int64_t i = 0; i < n; i++) sum += error[i] * error[i];
    return sum;
}

/* The core's z becomes half the difference quotient of the sum of squares. */
static void softmax_gives_the_derivative_of_the_loss(void) {
    enum { COUNT = 60 };
    const shape *s = &shapes[1];
    const double step = 1e-5;
    for (int axis = 1; axis < 4; axis++) {
        const qk_output_stage stage = {.activation = {.kind = QK_SOFTMAX}, .axis = axis};
        qk_random random = {5};
        float *z = qk_floats(&random, COUNT, -2, 2), *target = qk_floats(&random, COUNT, -2, 2);
        float error[COUNT], power[COUNT];
        double wide[COUNT], y[COUNT];
        for (int i = 0; i < COUNT; i++) wide[i] = z[i], y[i] = target[i];
        qk_stage_softmax(&stage, qk_softmax_shape_of(&stage, &s->geometry, &s->y), z, target, error, power);
        for (int i = 0; i < COUNT; i++) {
            const double kept = wide[i];
            wide[i] = kept + step;
            double difference = squares_of(wide, y, &stage, &s->y, COUNT);
            wide[i] = kept - step;
            difference -= squares_of(wide, y, &stage, &s->y, COUNT);
            wide[i] = kept;
            CHECK(fabs(z[i] - difference / (4 * step)) <= 1e-6);
        }
        free(z);
        free(target);
    }
}

static void softmax_hides_no_nan(void) {
    const qk_output_stage stage = {.activation = {.kind = QK_SOFTMAX}, .axis = 1};
    for (int at = 0; at < 3; at++) {
        float z[3] = {1, 2, 3}, target[3] = {1, 1, 1}, error[3], power[3];
        z[at] = NAN;
        qk_stage_softmax(&stage, (qk_softmax_shape){1, 3, 1}, z, target, error, power);
        for (int i = 0; i < 3; i++) CHECK(isnan(error[i]));
    }
}

QK_TESTS(QK_TEST(lines_of_every_activation), QK_TEST(each_output_has_its_own_slope),
         QK_TEST(a_stage_is_plain_when_it_does_nothing), QK_TEST(softmax_along_every_axis),
         QK_TEST(softmax_where_one_share_is_nearly_all), QK_TEST(softmax_gives_the_derivative_of_the_loss),
         QK_TEST(softmax_hides_no_nan))
