/* The loss from moments against the loss of all rows. */
#include "loss/dataset_moments.h"

#include "reconstruction_cases.h"

static bool applies(const fixture *f) { return qk_dataset_moments_apply(f->data); }

/* Errors of all outputs, from the moments of these samples. */
static void errors_from_moments(const fixture *f, const int64_t *samples, int64_t count, double *error) {
    qk_quadratic q;
    qk_blas_enter();
    CHECK(qk_dataset_moments_init(&q, f->data, samples, count, f->pool) == QK_OK);
    double *w = MEMORY(double, QK_ROW_BLOCK * f->K), *scratch = MEMORY(double, QK_ROW_BLOCK * f->K);
    double *bias = MEMORY(double, f->rows);
    for (int64_t r = 0; r < f->rows; r++) bias[r] = f->bias[r];
    for (int64_t b = 0; b < qk_row_blocks(&q, QK_ROW_BLOCK); b++) {
        const qk_row_block block = qk_row_block_at(&q, QK_ROW_BLOCK, b);
        for (int64_t i = 0; i < block.count * f->K; i++) w[i] = f->weight[block.first * f->K + i];
        qk_output_error(&q, block, w, bias, scratch, error);
    }
    qk_blas_leave();
    free(bias);
    free(scratch);
    free(w);
    qk_quadratic_destroy(&q);
}

static void they_give_the_loss_of_all_rows(void) {
    for (int i = 0; i < CASES; i++)
        for (int dtype = QK_U8; dtype <= QK_I8; dtype++)
            for (int every = 1; every <= 2; every++) {
                fixture f = fixture_new(case_of(i), (qk_dtype)dtype, NULL, 2);
                int64_t *samples = MEMORY(int64_t, f.data->count), count = 0;
                double *error = MEMORY(double, f.rows);
                qk_reconstruction_result all = result_new(&f);
                for (int64_t s = 0; s < f.data->count; s += every) samples[count++] = s;
                CHECK(applies(&f));
                reconstruct(&f, f.bias, samples, count, &all);
                errors_from_moments(&f, samples, count, error);
                for (int64_t r = 0; r < f.rows; r++) CHECK_CLOSE(error[r], all.row_loss[r], 1e-4);
                result_free(&all);
                free(error);
                free(samples);
                fixture_free(&f);
            }
}

static void order_and_threads_do_not_matter_to_what_is_exact(void) {
    fixture f = fixture_new(case_of(0), QK_U8, NULL, 1), g = fixture_new(case_of(0), QK_U8, NULL, 3);
    int64_t *forwards = MEMORY(int64_t, f.data->count), *back = backwards(&g);
    qk_quadratic a, b;
    for (int64_t s = 0; s < f.data->count; s++) forwards[s] = s;
    CHECK(qk_dataset_moments_init(&a, f.data, forwards, f.data->count, f.pool) == QK_OK);
    CHECK(qk_dataset_moments_init(&b, g.data, back, g.data->count, g.pool) == QK_OK);
    CHECK_SAME(a.gram, b.gram, f.inputs * f.K);
    CHECK_SAME(a.mean_x, b.mean_x, f.inputs);
    qk_quadratic_destroy(&a);
    qk_quadratic_destroy(&b);
    free(forwards);
    free(back);
    fixture_free(&f);
    fixture_free(&g);
}

static void floats_and_stages_have_none(void) {
    const qk_output_stage relu = {.activation = {.kind = QK_CLIP, .b = INFINITY}};
    fixture floats = fixture_new(case_of(0), QK_F32, NULL, 1), stage = fixture_new(case_of(0), QK_U8, &relu, 1);
    CHECK(!applies(&floats));
    CHECK(!applies(&stage));
    fixture_free(&floats);
    fixture_free(&stage);
}

static qk_status attempt(void *context) {
    const fixture *f = context;
    const int64_t samples[] = {0, 1, 2};
    qk_quadratic q = {0};
    const qk_status status = qk_dataset_moments_init(&q, f->data, samples, 3, f->pool);
    qk_quadratic copy = {0};
    const qk_status copied = status == QK_OK ? qk_quadratic_copy(&copy, &q) : status;
    qk_quadratic_destroy(&copy);
    qk_quadratic_destroy(&q);
    return copied;
}

static void they_may_run_out_of_memory(void) {
    fixture f = fixture_new(case_of(REF_CASES), QK_U8, NULL, 1);
    qk_refuse_each_allocation(attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(they_give_the_loss_of_all_rows), QK_TEST(order_and_threads_do_not_matter_to_what_is_exact),
         QK_TEST(floats_and_stages_have_none), QK_TEST(they_may_run_out_of_memory))
