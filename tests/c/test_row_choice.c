#include "moments/row_choice.h"

#include "qk_test.h"

typedef struct {
    int64_t *rows, count, fitted;
} drawn;

static drawn draw(qk_row_choice choice, int64_t sample, int64_t positions) {
    drawn d = {0};
    int64_t *order = MEMORY(int64_t, (positions + QK_RUN - 1) / QK_RUN);
    const int64_t room = qk_rows_per_sample(&choice, positions);
    d.rows = MEMORY(int64_t, room);
    d.count = qk_choose_rows(&choice, sample, positions, d.rows, order, &d.fitted);
    CHECK(d.count <= room);
    free(order);
    return d;
}

/* Fitted, then held out, each ascending; none twice, none outside. */
static void check_order(drawn d, int64_t positions) {
    char *seen = MEMORY(char, positions);
    CHECK(d.fitted >= 0 && d.fitted <= d.count);
    for (int64_t i = 0; i < d.count; i++) {
        CHECK(d.rows[i] >= 0 && d.rows[i] < positions);
        CHECK(!seen[d.rows[i]]);
        seen[d.rows[i]] = 1;
        if (i > 0 && i != d.fitted) CHECK(d.rows[i] > d.rows[i - 1]);
    }
    free(seen);
}

static void all_rows_are_taken_when_there_are_few(void) {
    const int64_t positions[] = {1, 15, 16, 17, 49, 1000};
    for (int i = 0; i < 6; i++) {
        const drawn d = draw((qk_row_choice){.samples = 10, .max_rows = 1000000}, 3, positions[i]);
        CHECK(d.count == positions[i] && d.fitted == d.count);
        for (int64_t j = 0; j < d.count; j++) CHECK(d.rows[j] == j);
        free(d.rows);
    }
}

static void about_max_rows_are_taken_when_there_are_many(void) {
    const int64_t samples = 20, positions = 3000;
    for (int64_t max_rows = 1; max_rows < 60000; max_rows = max_rows * 3 + 7) {
        int64_t total = 0;
        for (int64_t s = 0; s < samples; s++) {
            const drawn d = draw((qk_row_choice){.samples = samples, .max_rows = max_rows, .seed = 1}, s, positions);
            check_order(d, positions);
            total += d.count;
            free(d.rows);
        }
        CHECK(total >= (max_rows < samples * positions ? max_rows : samples * positions));
        CHECK(total < max_rows + samples * QK_RUN);
    }
}

/* A sample beyond the plan gets what it would get if it were the last one planned. */
static void samples_beyond_the_plan_give_fewer_and_fewer_rows(void) {
    const int64_t planned = 10, fed = 400, positions = 1600, max_rows = 8000;
    const qk_row_choice choice = {.samples = planned, .max_rows = max_rows, .holdout = 5, .seed = 1};
    int64_t total = 0, before = positions;
    for (int64_t s = 0; s < fed; s++) {
        const drawn d = draw(choice, s, positions);
        check_order(d, positions);
        const int64_t share = max_rows / (s < planned ? planned : s + 1);
        CHECK(d.count >= share && d.count <= share + QK_RUN && d.count <= before);
        CHECK(d.fitted == (s % 5 == 4 ? 0 : d.count));
        if (s >= planned) {
            qk_row_choice larger = choice;
            larger.samples = s + 1;
            const drawn last = draw(larger, s, positions);
            CHECK(last.count == d.count && last.fitted == d.fitted);
            CHECK_SAME(last.rows, d.rows, d.count);
            free(last.rows);
        }
        before = d.count;
        total += d.count;
        free(d.rows);
    }
    CHECK(before == 2 * QK_RUN); /* 20 rows, in runs */
    CHECK((double)total < (double)max_rows * (1 + log((double)fed / (double)planned)) + (double)(fed * QK_RUN));
}

/* Few positions are all taken as long as they are no more than the sample's share. */
static void small_samples_beyond_the_plan_are_whole_at_first(void) {
    const qk_row_choice choice = {.samples = 2, .max_rows = 1000};
    for (int64_t s = 0; s < 30; s++) {
        const drawn d = draw(choice, s, 97);
        check_order(d, 97);
        CHECK(s >= 10 || d.count == 97);
        CHECK(s < 15 || d.count < 97);
        CHECK(d.count > 0);
        free(d.rows);
    }
}

static void the_choice_depends_on_seed_and_sample_alone(void) {
    const qk_row_choice one = {.samples = 50, .max_rows = 5000, .holdout = 5, .seed = 1};
    qk_row_choice other = one;
    other.seed = 2;
    const drawn a = draw(one, 7, 2000), again = draw(one, 7, 2000), b = draw(one, 8, 2000), c = draw(other, 7, 2000);
    CHECK(a.count == again.count && a.fitted == again.fitted);
    CHECK_SAME(a.rows, again.rows, a.count);
    CHECK(memcmp(a.rows, b.rows, (size_t)a.count * sizeof *a.rows) != 0);
    CHECK(memcmp(a.rows, c.rows, (size_t)a.count * sizeof *a.rows) != 0);
    free(a.rows);
    free(again.rows);
    free(b.rows);
    free(c.rows);
}

static void every_position_is_drawn_equally_often(void) {
    enum { POSITIONS = 320, SAMPLES = 4000 };
    int seen[POSITIONS] = {0};
    const qk_row_choice choice = {.samples = SAMPLES, .max_rows = SAMPLES * 64, .seed = 3}; /* a fifth of them */
    for (int64_t s = 0; s < SAMPLES; s++) {
        const drawn d = draw(choice, s, POSITIONS);
        for (int64_t i = 0; i < d.count; i++) seen[d.rows[i]]++;
        free(d.rows);
    }
    for (int i = 0; i < POSITIONS; i++) CHECK(abs(seen[i] - SAMPLES / 5) < 130); /* about 5 standard deviations */
}

static void whole_samples_are_held_out_where_there_are_enough(void) {
    const qk_row_choice choice = {.samples = 20, .max_rows = 1000000, .holdout = 5};
    for (int64_t s = 0; s < 20; s++) {
        const drawn d = draw(choice, s, 100);
        check_order(d, 100);
        CHECK(d.fitted == (s % 5 == 4 ? 0 : 100));
        free(d.rows);
    }
}

static void runs_are_held_out_where_samples_are_few(void) {
    const qk_row_choice choice = {.samples = 2, .max_rows = 1000000, .holdout = 5};
    int64_t fitted = 0, held_out = 0;
    for (int64_t s = 0; s < 2; s++) {
        const drawn d = draw(choice, s, 1600);
        check_order(d, 1600);
        fitted += d.fitted;
        held_out += d.count - d.fitted;
        free(d.rows);
    }
    CHECK(fitted == 4 * held_out && held_out > 0);
}

QK_TESTS(QK_TEST(all_rows_are_taken_when_there_are_few), QK_TEST(about_max_rows_are_taken_when_there_are_many),
         QK_TEST(samples_beyond_the_plan_give_fewer_and_fewer_rows),
         QK_TEST(small_samples_beyond_the_plan_are_whole_at_first),
         QK_TEST(the_choice_depends_on_seed_and_sample_alone), QK_TEST(every_position_is_drawn_equally_often),
         QK_TEST(whole_samples_are_held_out_where_there_are_enough), QK_TEST(runs_are_held_out_where_samples_are_few))
