/* A device's memory, its kernels, and what goes wrong. */
#include "device_cases.h"

static void memory_holds_what_is_written(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    const int32_t numbers[] = {3, 1, 4, 1, 5};
    int32_t first[5] = {9, 9, 9, 9, 9}, second[5];
    qk_device_take(d);
    qk_buffer a = qk_buffer_new(d, 5, sizeof *numbers), b = qk_buffer_new(d, 5, sizeof *numbers);
    qk_buffer_read(&a, 0, first, sizeof first);
    for (int i = 0; i < 5; i++) CHECK(first[i] == 0);
    qk_buffer_write(&a, 0, numbers, sizeof numbers);
    qk_buffer_write(&a, sizeof *numbers, numbers, sizeof *numbers);
    qk_buffer_copy(&b, &a);
    qk_buffer_read(&b, 0, second, sizeof second);
    CHECK(second[0] == 3 && second[1] == 3 && second[2] == 4 && second[4] == 5);
    qk_buffer_clear(&b);
    qk_buffer_read(&b, sizeof *numbers, second, 2 * sizeof *numbers);
    CHECK(second[0] == 0 && second[1] == 0);
    qk_buffer_free(&a);
    qk_buffer_free(&b);
    CHECK(qk_device_release(d) == QK_OK);
    CHECK(strlen(qk_device_name(d)) > 0);
    qk_device_close(d);
}

/* Sizes on both sides of a tile's, each operand in both orders, several matrices at once, k in parts. */
static void check_product(qk_device *d, int m, int n, int k, int kind) {
    const bool a_turned = kind & 1, b_turned = kind & 2;
    enum { BATCHES = 2 };
    const int split = kind & 4 ? 32 : k, splits = (k + split - 1) / split;
    const qk_product p = {.m = m,
                          .n = n,
                          .k = k,
                          .batches = BATCHES,
                          .splits = splits,
                          .split = split,
                          .a_line = a_turned ? 1 : k,
                          .a_column = a_turned ? m : 1,
                          .a_batch = m * k,
                          .b_line = b_turned ? 1 : n,
                          .b_column = b_turned ? k : 1,
                          .b_batch = k * n};
    qk_random random = {(uint64_t)(m * 1000 + n * 10 + kind)};
    float *a = qk_floats(&random, BATCHES * m * k, -1, 1), *b = qk_floats(&random, BATCHES * k * n, -1, 1);
    const int64_t size = BATCHES * m * n;
    double *sums = MEMORY(double, size);
    qk_device_take(d);
    qk_buffer da = qk_buffer_new(d, BATCHES * m * k, sizeof *a), db = qk_buffer_new(d, BATCHES * k * n, sizeof *b);
    qk_buffer parts = qk_buffer_new(d, splits * size, sizeof *a), to = qk_buffer_new(d, size, sizeof *sums);
    qk_buffer_write(&da, 0, a, da.bytes);
    qk_buffer_write(&db, 0, b, db.bytes);
    QK_RUN(d, multiply, qk_work_product(&p), QK_BUFFER(parts), QK_BUFFER(da), QK_BUFFER(db), QK_VALUE(p));
    const int all = (int)size;
    for (int begins = 1; begins >= 0; begins--) /* twice, the second time on top */
        QK_RUN(d, add_parts, qk_work_items(size), QK_BUFFER(to), QK_BUFFER(parts), QK_VALUE(splits), QK_VALUE(all),
               QK_VALUE(begins));
    qk_buffer_read(&to, 0, sums, to.bytes);
    qk_buffer *buffers[] = {&da, &db, &parts, &to};
    for (int i = 0; i < 4; i++) qk_buffer_free(buffers[i]);
    CHECK(qk_device_release(d) == QK_OK);
    for (int batch = 0; batch < BATCHES; batch++)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                double sum = 0;
                for (int x = 0; x < k; x++)
                    sum += (double)a[batch * m * k + i * p.a_line + x * p.a_column] *
                           (double)b[batch * k * n + x * p.b_line + j * p.b_column];
                CHECK(fabs(sums[(batch * m + i) * n + j] - 2 * sum) < 1e-5 * (1 + sqrt(k)));
            }
    free(a);
    free(b);
    free(sums);
}

static void products_are_those_of_loops(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    const int sizes[][3] = {{1, 1, 1}, {32, 32, 16}, {33, 31, 17}, {5, 70, 100}, {65, 3, 130}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 8; kind++) check_product(d, sizes[i][0], sizes[i][1], sizes[i][2], kind);
    qk_device_close(d);
}

static void its_memory_has_a_limit(void) {
    qk_device *d = device_new(1000);
    if (!d) return;
    for (int i = 0; i < 2; i++) { /* what is freed can be had again, and the next user finds no trace */
        qk_device_take(d);
        qk_buffer a = qk_buffer_new(d, 600, 1);
        CHECK(qk_device_status(d) == QK_OK);
        qk_buffer b = qk_buffer_new(d, 600, 1);
        CHECK(!b.memory);
        qk_buffer_clear(&b);
        qk_buffer_free(&b);
        qk_buffer_free(&a);
        CHECK(qk_device_release(d) == QK_E_DEVICE_NOMEM);
        CHECK(says(d, "CL_OUT_OF_RESOURCES"));
    }
    qk_device_close(d);
}

static void a_lost_device_stays_lost(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    qk_device_take(d);
    qk_device_lose(d, "its cable was pulled");
    CHECK(qk_device_release(d) == QK_E_DEVICE);
    qk_device_take(d);
    qk_buffer none = qk_buffer_new(d, 1, 1);
    CHECK(!none.memory);
    CHECK(qk_device_release(d) == QK_E_DEVICE);
    CHECK(says(d, "its cable was pulled"));
    qk_device_close(d);
}

static bool is_lost_in_a_child(void *device) {
    qk_device_take(device);
    const bool lost = qk_device_release(device) == QK_E_DEVICE && says(device, "fork()");
    qk_device_close(device);
    return lost;
}

/* Even where another thread has it meanwhile. */
static void a_child_cannot_use_it(void) {
    qk_device *d = device_new(0);
    if (!d) return;
    qk_device_take(d);
    CHECK(qk_child_succeeds(is_lost_in_a_child, d));
    CHECK(qk_device_release(d) == QK_OK);
    qk_device_close(d);
}

static void what_cannot_be_opened_says_why(void) {
    char why[QK_DEVICE_MESSAGE];
    qk_device *d = device_new(0);
    if (!d) return;
    qk_device_close(d);
    const struct {
        qk_device_choice choice;
        const char *source, *part;
    } cases[] = {{{.any_kind = true}, "__kernel void f(__global int *x) { *x = nothing; }", "nothing"},
                 {{.any_kind = true}, "__kernel void f(__global int *x) { *x = 1; }", "clCreateKernel"},
                 {{.any_kind = true, .index = 1000}, "", "there is no device 1000"},
                 {{.any_kind = true, .index = -1}, "", "there is no device -1"},
                 {{.any_kind = true, .platform = 1000}, "", "there is no OpenCL platform 1000"},
                 {{.any_kind = true, .platform = -1}, "", "there is no device"},
                 {{.index = 1000}, "", "there is no GPU 1000"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(qk_device_open_with(&d, &cases[i].choice, cases[i].source, why) == QK_E_DEVICE);
        CHECK(!d);
        CHECK(strstr(why, cases[i].part));
        if (!strstr(why, cases[i].part)) fprintf(stderr, "%s\n", why);
    }
}

QK_TESTS(QK_TEST(memory_holds_what_is_written), QK_TEST(products_are_those_of_loops), QK_TEST(its_memory_has_a_limit),
         QK_TEST(a_lost_device_stays_lost), QK_TEST(a_child_cannot_use_it), QK_TEST(what_cannot_be_opened_says_why))
