#include "ops/panel.h"

#include "reference.h"

/* A sealed table lists its padding, and every offset can be read: none lies behind all others of its tap. */
static void check_padding(const qk_row_table *table, const int32_t *offsets) {
    for (int64_t tap = 0; tap < table->taps; tap++) {
        const int32_t *padding = table->padding + tap * table->capacity;
        int32_t last = 0;
        int64_t n = 0;
        for (int64_t i = 0; i < table->count; i++)
            if (offsets[tap * table->capacity + i] > last) last = offsets[tap * table->capacity + i];
        for (int64_t i = 0; i < table->count; i++) {
            const int64_t at = tap * table->capacity + i;
            CHECK(offsets[at] < 0 ? table->offsets[at] >= 0 && table->offsets[at] <= last
                                  : table->offsets[at] == offsets[at]);
            if (offsets[at] < 0) CHECK(n < table->padding_count[tap] && padding[n++] == i);
        }
        CHECK(table->padding_count[tap] == n);
    }
}

/* Fills a panel with the given positions of one sample, from a column on, and compares it with the naive rows. */
static void check_panel(const ref_case *c, const qk_tensor *x, int64_t sample, const int64_t *positions, int64_t n) {
    enum { COLUMN = 3, SPARE = 5 };
    const qk_geometry *g = &c->geometry;
    qk_extent e;
    qk_row_table table;
    CHECK(qk_extent_of(g, x, NULL, &e) == QK_OK);
    const int64_t capacity = n + COLUMN + SPARE, lines = e.channels * e.taps, split = n / 3;
    CHECK(qk_row_table_init(&table, e.taps, capacity) == QK_OK);
    qk_row_table_add_inputs(&table, g, &e, sample, positions, n); /* an earlier panel, whose padding is forgotten */
    qk_row_table_seal(&table);
    table.count = 0;
    qk_row_table_add_inputs(&table, g, &e, sample, positions, split); /* in two steps, as batches do */
    qk_row_table_add_inputs(&table, g, &e, sample, positions + split, n - split);
    CHECK(table.count == n);
    int32_t *offsets = MEMORY(int32_t, e.taps * capacity);
    memcpy(offsets, table.offsets, (size_t)(e.taps * capacity) * sizeof *offsets);
    qk_row_table_seal(&table);
    check_padding(&table, offsets);
    free(offsets);

    float *panel = MEMORY(float, lines * capacity), *rows = MEMORY(float, e.positions * lines);
    for (int64_t i = 0; i < lines * capacity; i++) panel[i] = -77;
    const qk_panel_fill_job job = {panel, capacity, COLUMN, x, e.x_channel, &table, NULL};
    for (int64_t channel = 0; channel < e.channels; channel++) qk_panel_fill(&job, channel, channel + 1);

    ref_inputs(g, x, sample, rows);
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < capacity; i++) {
            const bool used = i >= COLUMN && i < COLUMN + n;
            CHECK(panel[line * capacity + i] == (used ? rows[positions[i - COLUMN] * lines + line] : -77));
        }

    qk_affine affine;
    const bool as_bytes = qk_bytes_of(x, &affine);
    CHECK(as_bytes == (x->dtype != QK_F32));
    uint8_t *bytes = MEMORY(uint8_t, lines * capacity);
    memset(bytes, 77, (size_t)(lines * capacity));
    const qk_panel_fill_job byte_job = {NULL, capacity, COLUMN, x, e.x_channel, &table, bytes};
    for (int64_t channel = 0; channel < e.channels && as_bytes; channel++)
        qk_panel_fill(&byte_job, channel, channel + 1);
    for (int64_t i = 0; i < lines * capacity && as_bytes; i++) {
        const bool used = i % capacity >= COLUMN && i % capacity < COLUMN + n;
        CHECK(used ? (float)(bytes[i] - affine.zero_point) * affine.scale == panel[i] : bytes[i] == 77);
    }
    free(bytes);
    free(rows);
    free(panel);
    qk_row_table_destroy(&table);
}

static void check_case(const ref_case *c, qk_dtype dtype) {
    qk_random r = {5};
    qk_tensor x = ref_tensor(&r, dtype, c->x_ndim, c->x_dims);
    const int64_t all = ref_positions(&c->geometry, &x), sample = x.dims[0] - 1;
    int64_t *positions = MEMORY(int64_t, all), n = 0;
    for (int64_t p = 0; p < all; p++) positions[p] = p;
    check_panel(c, &x, sample, positions, all);
    for (int64_t p = 0; p < all; p++) /* with gaps: runs of all lengths */
        if (p % 41 < 20 || qk_random_below(&r, 4) == 0) positions[n++] = p;
    check_panel(c, &x, 0, positions, n);
    free(positions);
    ref_free(&x);
}

static void panels_hold_the_rows(void) {
    for (int i = 0; i < REF_CASES; i++)
        for (int dtype = QK_F32; dtype <= QK_I8; dtype++) check_case(&ref_cases[i], (qk_dtype)dtype);
}

static void outputs_are_rows_of_one_tap(void) {
    for (int i = 0; i < REF_CASES; i++) {
        const ref_case *c = &ref_cases[i];
        const qk_geometry *g = &c->geometry;
        qk_random r = {6};
        qk_tensor x = ref_tensor(&r, QK_F32, c->x_ndim, c->x_dims), y = ref_target(&r, g, &x);
        qk_extent e;
        qk_row_table table;
        CHECK(qk_extent_of(g, &x, &y, &e) == QK_OK);
        const int64_t n = e.positions, outputs = g->groups * g->outputs;
        CHECK(qk_row_table_init(&table, 1, n) == QK_OK);
        int64_t *positions = MEMORY(int64_t, n);
        for (int64_t p = 0; p < n; p++) positions[p] = n - 1 - p; /* any order */
        qk_row_table_add_outputs(&table, &e, 1, positions, n);
        qk_row_table_seal(&table);
        float *panel = MEMORY(float, outputs * n), *rows = MEMORY(float, n * outputs);
        const qk_panel_fill_job job = {panel, n, 0, &y, e.y_output, &table, NULL};
        qk_panel_fill(&job, 0, outputs);
        ref_outputs(g, &y, 1, rows);
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t p = 0; p < n; p++) CHECK(panel[o * n + p] == rows[positions[p] * outputs + o]);
        free(rows);
        free(panel);
        free(positions);
        qk_row_table_destroy(&table);
        ref_free(&x);
        ref_free(&y);
    }
}

static qk_status make_table(void *context) {
    (void)context;
    qk_row_table table;
    const qk_status status = qk_row_table_init(&table, 9, 64);
    qk_row_table_destroy(&table);
    return status;
}

static void a_table_may_run_out_of_memory(void) { qk_refuse_each_allocation(make_table, NULL); }

QK_TESTS(QK_TEST(panels_hold_the_rows), QK_TEST(outputs_are_rows_of_one_tap), QK_TEST(a_table_may_run_out_of_memory))
