#include "base/random.h"

#include "qk_test.h"

static void the_stream_is_splitmix64(void) {
    /* The generator's published first outputs for seed 1234567. */
    const uint64_t expected[] = {UINT64_C(6457827717110365317), UINT64_C(3203168211198807973),
                                 UINT64_C(9817491932198370423), UINT64_C(4593380528125082431),
                                 UINT64_C(16408922859458223821)};
    qk_random r = {1234567};
    for (int i = 0; i < 5; i++) CHECK(qk_random_next(&r) == expected[i]);
}

static void below_stays_below_and_is_even(void) {
    enum { N = 7, DRAWS = 70000 };
    int seen[N] = {0};
    qk_random r = {1};
    for (int i = 0; i < DRAWS; i++) {
        const uint64_t x = qk_random_below(&r, N);
        CHECK(x < N);
        seen[x]++;
    }
    for (int i = 0; i < N; i++) CHECK(abs(seen[i] - DRAWS / N) < 500); /* about 5 standard deviations */
    CHECK(qk_random_below(&r, 1) == 0);
}

static void streams_depend_on_seed_and_index_alone(void) {
    qk_random a = qk_random_stream(1, 5), b = qk_random_stream(1, 5);
    for (int i = 0; i < 10; i++) CHECK(qk_random_next(&a) == qk_random_next(&b));
    for (uint64_t i = 0; i < 100; i++)
        for (uint64_t j = 0; j < 100; j++) {
            qk_random s = qk_random_stream(i, j), next = qk_random_stream(i, j + 1), other = qk_random_stream(i + 1, j);
            const uint64_t x = qk_random_next(&s);
            CHECK(x != qk_random_next(&next));
            CHECK(x != qk_random_next(&other));
        }
}

QK_TESTS(QK_TEST(the_stream_is_splitmix64), QK_TEST(below_stays_below_and_is_even),
         QK_TEST(streams_depend_on_seed_and_index_alone))
