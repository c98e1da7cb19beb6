/* Inputs of a step, each the quantized graph's or the float graph's. */
#include "loss/qdrop.h"

#include "reference.h"

enum { SAMPLES = 6, MOST = 4 };
static const int64_t chosen[MOST] = {5, 0, 3, 2};

/* 3x3 on (6, 3, 12, 20): x as it is fed, and what the float graph has there. */
typedef struct {
    qk_training_data *data;
    qk_pool *pool;
    qk_tensor x, x_float, y;
    int64_t size; /* of a sample */
} fixture;

static fixture fixture_new(qk_dtype dtype, int threads) {
    const ref_case *c = &ref_cases[5];
    qk_random random = {4};
    int64_t dims[QK_MAX_DIMS];
    memcpy(dims, c->x_dims, sizeof dims);
    dims[0] = SAMPLES;
    fixture f = {.pool = qk_pool_new(threads),
                 .x = ref_tensor(&random, dtype, c->x_ndim, dims),
                 .x_float = ref_tensor(&random, QK_F32, c->x_ndim, dims)};
    f.y = ref_target(&random, &c->geometry, &f.x);
    f.size = ref_elements(&f.x) / SAMPLES;
    CHECK(qk_training_data_new(&f.data, &c->geometry, NULL, 0) == QK_OK);
    for (int64_t i = 0; i < SAMPLES; i += 2) { /* batches of two */
        const qk_tensor x = ref_slice(&f.x, i, i + 2), y = ref_slice(&f.y, i, i + 2);
        const qk_tensor x_float = ref_slice(&f.x_float, i, i + 2);
        CHECK(qk_training_data_add(f.data, &x, &x_float, &y) == QK_OK);
    }
    return f;
}

static void fixture_free(fixture *f) {
    qk_training_data_free(f->data);
    qk_pool_free(f->pool);
    ref_free(&f->x);
    ref_free(&f->x_float);
    ref_free(&f->y);
}

/* The values of one step: (MOST, size), the caller's memory. */
static float *mixed(const fixture *f, double ratio, uint64_t seed, int64_t step) {
    qk_qdrop m;
    CHECK(qk_qdrop_init(&m, f->data, ratio, seed, MOST) == QK_OK);
    qk_qdrop_draw(&m, chosen, MOST, step + 1, f->pool); /* what was there before does not matter */
    qk_qdrop_draw(&m, chosen, MOST, step, f->pool);
    float *values = MEMORY(float, MOST * f->size);
    for (int i = 0; i < MOST; i++) {
        CHECK(m.samples[i].dtype == QK_F32 && m.samples[i].ndim == 4 && m.samples[i].dims[0] == 1);
        for (int axis = 1; axis < 4; axis++) CHECK(m.samples[i].dims[axis] == f->x.dims[axis]);
        memcpy(values + i * f->size, m.samples[i].data, (size_t)f->size * sizeof *values);
    }
    qk_qdrop_destroy(&m);
    return values;
}

/* Each value is one of the two. Returns how many are as they are fed. */
static int64_t count_fed(const fixture *f, const float *values) {
    int64_t fed = 0;
    for (int64_t i = 0; i < MOST * f->size; i++) {
        const int64_t at = chosen[i / f->size] * f->size + i % f->size;
        const float x = ref_value(&f->x, at), x_float = ref_value(&f->x_float, at);
        CHECK(values[i] == x || values[i] == x_float);
        fed += values[i] == x;
    }
    return fed;
}

static void the_share_is_about_the_ratio(void) {
    const double ratios[] = {0, 0.1, 0.5, 0.9, 1 - 0x1p-40};
    for (int dtype = QK_F32; dtype <= QK_I8; dtype++) {
        fixture f = fixture_new((qk_dtype)dtype, 2);
        const double n = (double)(MOST * f.size);
        for (int i = 0; i < 5; i++) {
            float *values = mixed(&f, ratios[i], 7, 3);
            const double share = (double)count_fed(&f, values) / n;
            CHECK(fabs(share - ratios[i]) <= 4 * sqrt(ratios[i] * (1 - ratios[i]) / n)); /* 0 and about 1: exactly */
            free(values);
        }
        fixture_free(&f);
    }
}

/* As the header says: 53 bits of stream step * MOST + place + 1, one draw per value. */
static void the_draw_is_that_of_its_stream(void) {
    fixture f = fixture_new(QK_U8, 2);
    const uint64_t seed = 11;
    for (int64_t step = 0; step < 3; step++) {
        float *values = mixed(&f, 0.3, seed, step);
        for (int64_t place = 0; place < MOST; place++) {
            qk_random random = qk_random_stream(seed, (uint64_t)(step * MOST + place + 1));
            for (int64_t i = 0; i < f.size; i++) {
                const bool fed = (double)(qk_random_next(&random) >> 11) * 0x1p-53 < 0.3;
                const int64_t at = chosen[place] * f.size + i;
                CHECK(values[place * f.size + i] == ref_value(fed ? &f.x : &f.x_float, at));
            }
        }
        free(values);
    }
    fixture_free(&f);
}

/* Steps, places and seeds draw independently of each other: about half of the choices agree. */
static void every_step_and_place_draws_anew(void) {
    fixture f = fixture_new(QK_F32, 1);
    float *values[4] = {mixed(&f, 0.5, 1, 0), mixed(&f, 0.5, 1, 1), mixed(&f, 0.5, 2, 0), mixed(&f, 0.5, 1, 0)};
    bool *fed[4];
    for (int run = 0; run < 4; run++) {
        fed[run] = MEMORY(bool, MOST * f.size);
        for (int64_t i = 0; i < MOST * f.size; i++)
            fed[run][i] = values[run][i] == ref_value(&f.x, chosen[i / f.size] * f.size + i % f.size);
    }
    const double n = (double)f.size;
    for (int64_t place = 0; place < MOST; place++)
        for (int other = 0; other < 3; other++) { /* the next place of this step; another step; another seed */
            const bool *a = fed[0] + place * f.size, *b = fed[other] + place * f.size;
            if (other == 0) b = fed[0] + (place + 1) % MOST * f.size;
            double same = 0;
            for (int64_t i = 0; i < f.size; i++) same += a[i] == b[i];
            CHECK(fabs(same / n - 0.5) <= 4 * sqrt(0.25 / n));
        }
    CHECK_SAME(fed[0], fed[3], MOST * f.size);
    for (int run = 0; run < 4; run++) free(values[run]), free(fed[run]);
    fixture_free(&f);
}

static void threads_do_not_change_a_value(void) {
    fixture one = fixture_new(QK_I8, 1);
    float *expected = mixed(&one, 0.5, 5, 2);
    for (int threads = 2; threads <= 5; threads += 3) {
        fixture many = fixture_new(QK_I8, threads);
        float *values = mixed(&many, 0.5, 5, 2);
        CHECK_SAME(values, expected, MOST * one.size);
        free(values);
        fixture_free(&many);
    }
    free(expected);
    fixture_free(&one);
}

static qk_status init_attempt(void *context) {
    const fixture *f = context;
    qk_qdrop m;
    const qk_status status = qk_qdrop_init(&m, f->data, 0.5, 1, MOST);
    qk_qdrop_destroy(&m); /* also of one that failed */
    return status;
}

static void the_memory_may_run_out(void) {
    fixture f = fixture_new(QK_F32, 1);
    qk_refuse_each_allocation(init_attempt, &f);
    fixture_free(&f);
}

QK_TESTS(QK_TEST(the_share_is_about_the_ratio), QK_TEST(the_draw_is_that_of_its_stream),
         QK_TEST(every_step_and_place_draws_anew), QK_TEST(threads_do_not_change_a_value),
         QK_TEST(the_memory_may_run_out))
