/* Products of bytes against obvious sums in integers, for every table and every tail. */
#include "qk_test.h"
#include "tables.h"

enum { TAILS = 131, SHIFTS = 3, STRIDE = TAILS + SHIFTS, MOST_LINES = 11, MOST_BYTES = 1 << 16 };

static uint8_t *bytes(size_t n, uint64_t seed) {
    qk_random r = {seed};
    uint8_t *x = MEMORY(uint8_t, n);
    for (size_t i = 0; i < n; i++) x[i] = (uint8_t)qk_random_below(&r, 256);
    return x;
}

/* What stands above the diagonal, and beside the lines that are asked for, stays. */
static void check_gram(const qk_kernels *kernels, const uint8_t *panel, int64_t k, int64_t first, int64_t end,
                       int64_t stride, size_t n) {
    double gram[MOST_LINES * MOST_LINES];
    for (int64_t i = 0; i < k * k; i++) gram[i] = 0.5;
    kernels->gram_bytes(gram, panel, k, first, end, stride, n);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            int64_t sum = 0;
            for (size_t t = 0; t < n && i >= first && i < end && j <= i; t++)
                sum += panel[i * stride + (int64_t)t] * (panel[j * stride + (int64_t)t] - 128);
            CHECK(gram[i * k + j] == 0.5 + (double)sum);
        }
}

static void gram_bytes_adds_a_lower_triangle(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (size_t n = 0; n < TAILS; n++)
        for (int t = 0; t < count; t++) {
            uint8_t *panel = bytes(MOST_LINES * STRIDE, n);
            const int64_t k = 1 + (int64_t)n % MOST_LINES, first = (int64_t)n % 4 % k;
            check_gram(tables[t], panel + n % SHIFTS, k, 0, k, STRIDE, n);
            check_gram(tables[t], panel + n % SHIFTS, k, first, k, STRIDE, n);
            check_gram(tables[t], panel + n % SHIFTS, MOST_LINES, 4, 7, STRIDE, n);
            free(panel);
        }
}

/* The extremes, over as many bytes as are allowed. */
static void no_sum_of_bytes_overflows(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    const uint8_t extremes[] = {0, 255};
    uint8_t *panel = MEMORY(uint8_t, 4 * MOST_BYTES);
    for (int value = 0; value < 2; value++)
        for (int t = 0; t < count; t++) {
            memset(panel, 255, 4 * MOST_BYTES);
            memset(panel, extremes[value], 2 * MOST_BYTES);
            check_gram(tables[t], panel, 4, 0, 4, MOST_BYTES, MOST_BYTES);
            CHECK(tables[t]->sum_bytes(panel, 4 * MOST_BYTES) == (2 * extremes[value] + 2 * 255) * (int64_t)MOST_BYTES);
        }
    free(panel);
}

static void sums_and_dot_products_of_bytes(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (size_t n = 0; n < TAILS; n++)
        for (int t = 0; t < count; t++) {
            qk_random r = {n};
            uint8_t *all = bytes(STRIDE, n + 7);
            float *y = qk_floats(&r, STRIDE, -2, 2);
            const uint8_t *x = all + n % SHIFTS;
            const int32_t zero_point = (int32_t)n;
            int64_t sum = 0;
            double dot = 0;
            for (size_t i = 0; i < n; i++) {
                sum += x[i];
                dot += (double)(x[i] - zero_point) * (double)y[i];
            }
            CHECK(tables[t]->sum_bytes(x, n) == sum);
            CHECK(fabs(tables[t]->dot_bytes(x, zero_point, y, n) - dot) <= 1e-6 * 512 * (double)(n + 1));
            CHECK(tables[t]->dot_bytes(x, zero_point, y, n) == qk_kernels_scalar.dot_bytes(x, zero_point, y, n));
            free(y);
            free(all);
        }
}

QK_TESTS(QK_TEST(gram_bytes_adds_a_lower_triangle), QK_TEST(no_sum_of_bytes_overflows),
         QK_TEST(sums_and_dot_products_of_bytes))
