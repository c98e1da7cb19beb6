/* The transforms of Winograd's filtering: every table against products with the paper's matrices in float64, and
 * against the scalar table bit for bit. */
#include "qk_test.h"
#include "tables.h"

enum { MOST = 50, WIDTH = 31, PLANE = MOST * 40 + 10 * WIDTH, GAP = 3 };

/* Lavin and Gray, arXiv 1509.09308, F(4x4, 3x3). */
static const double B[36] = {4, 0, 0,  0, 0,  0,  0, -4, 4, -2, 2, 4, -5, -4, -4, -1, -1, 0,
                             0, 1, -1, 2, -2, -5, 1, 1,  1, 1,  1, 0, 0,  0,  0,  0,  0,  1};             /* (6, 6) */
static const double A[24] = {1, 0, 0, 0, 1, 1, 1, 1, 1, -1, 1, -1, 1, 2, 4, 8, 1, -2, 4, -8, 0, 0, 0, 1}; /* (6, 4) */
static const double G[18] = {1. / 4,  0,       0,      -1. / 6, -1. / 6,  -1. / 6, -1. / 6, 1. / 6, -1. / 6,
                             1. / 24, 1. / 12, 1. / 6, 1. / 24, -1. / 12, 1. / 6,  0,       0,      1}; /* (6, 3) */

/* A transform: to (m, m) = matrix from (r, r) matrix', the matrix (m, r) given as it is or as (r, m). */
typedef struct {
    const double *matrix;
    bool transposed, to_lines;
    int m, r;
} transform;

static const transform input = {B, true, true, 6, 6}, output = {A, true, false, 4, 6}, error = {A, false, true, 6, 4};
static const transform filter = {G, false, true, 6, 3}, gradient = {G, true, false, 3, 6};

static double entry(const transform *t, int i, int k) {
    return t->transposed ? t->matrix[k * t->m + i] : t->matrix[i * t->r + k];
}

/* One element of the result, and the sum of the sizes of what it is added up from. */
static double expected(const transform *t, const double *from, int i, int j, double *size) {
    double sum = 0;
    *size = 0;
    for (int k = 0; k < t->r; k++)
        for (int l = 0; l < t->r; l++) {
            const double part = entry(t, i, k) * from[k * t->r + l] * entry(t, j, l);
            sum += part;
            *size += fabs(part);
        }
    return sum;
}

typedef void to_lines(float *restrict to, int64_t ld, const float *restrict plane, const int32_t *restrict at,
                      int64_t width, size_t n);
typedef void to_squares(float *restrict plane, const int32_t *restrict at, int64_t width, const float *restrict from,
                        int64_t ld, size_t n);

/* Squares that do not overlap, from the last to the first. */
static void places(int32_t *at, size_t n, int size) {
    for (size_t i = 0; i < n; i++) {
        const int32_t place = (int32_t)(n - 1 - i), in_row = WIDTH / size;
        at[i] = place / in_row * size * WIDTH + place % in_row * size;
    }
}

static void check(const transform *t, to_lines *lines_of, to_squares *squares_of, to_lines *scalar_lines,
                  to_squares *scalar_squares, size_t n) {
    qk_random random = {n + 1};
    const int64_t ld = (int64_t)n + GAP;
    const int size = t->to_lines ? t->r : t->m;
    int32_t at[MOST];
    float *plane = qk_floats(&random, PLANE, -2, 2), *lines = qk_floats(&random, 36 * ld, -2, 2);
    float *to = t->to_lines ? lines : plane, *scalar = MEMORY(float, t->to_lines ? 36 * ld : PLANE);
    const int64_t count = t->to_lines ? 36 * ld : PLANE;
    bool *written = MEMORY(bool, count);
    places(at, n, size);
    for (int64_t i = 0; i < count; i++) to[i] = scalar[i] = -77;
    if (t->to_lines) {
        lines_of(to, ld, plane, at, WIDTH, n);
        scalar_lines(scalar, ld, plane, at, WIDTH, n);
    } else {
        squares_of(to, at, WIDTH, lines, ld, n);
        scalar_squares(scalar, at, WIDTH, lines, ld, n);
    }
    CHECK_SAME(to, scalar, count);
    for (size_t s = 0; s < n; s++) {
        double from[36];
        for (int i = 0; i < t->r; i++)
            for (int j = 0; j < t->r; j++)
                from[i * t->r + j] =
                    t->to_lines ? plane[at[s] + i * WIDTH + j] : lines[(i * t->r + j) * ld + (int64_t)s];
        for (int i = 0; i < t->m; i++)
            for (int j = 0; j < t->m; j++) {
                const int64_t place = t->to_lines ? (i * t->m + j) * ld + (int64_t)s : at[s] + i * WIDTH + j;
                double of;
                const double value = expected(t, from, i, j, &of);
                CHECK(fabs(to[place] - value) <= 1e-6 * of);
                written[place] = true;
            }
    }
    for (int64_t i = 0; i < count; i++) CHECK(written[i] || to[i] == -77);
    free(written);
    free(scalar);
    free(lines);
    free(plane);
}

#define FOR_EVERY_LENGTH(lines_of, squares_of, t)                                                   \
    do {                                                                                            \
        const qk_kernels *tables[MOST_TABLES];                                                      \
        const int count = runnable(tables);                                                         \
        for (size_t n = 0; n <= MOST; n++)                                                          \
            for (int i = 0; i < count; i++)                                                         \
                check(&(t), tables[i]->lines_of, tables[i]->squares_of, qk_kernels_scalar.lines_of, \
                      qk_kernels_scalar.squares_of, n);                                             \
    } while (0)

static void inputs_become_lines(void) { FOR_EVERY_LENGTH(winograd_input, winograd_output, input); }
static void lines_become_outputs(void) { FOR_EVERY_LENGTH(winograd_input, winograd_output, output); }
static void errors_become_lines(void) { FOR_EVERY_LENGTH(winograd_error, winograd_output, error); }
static void filters_become_lines(void) { FOR_EVERY_LENGTH(winograd_filter, winograd_gradient, filter); }
static void lines_become_gradients(void) { FOR_EVERY_LENGTH(winograd_filter, winograd_gradient, gradient); }

QK_TESTS(QK_TEST(inputs_become_lines), QK_TEST(lines_become_outputs), QK_TEST(errors_become_lines),
         QK_TEST(filters_become_lines), QK_TEST(lines_become_gradients))
