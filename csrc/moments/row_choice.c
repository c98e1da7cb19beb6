#include "moments/row_choice.h"

#include "base/random.h"
#include "base/sizes.h"

static int64_t run_count(int64_t positions) { return qk_ceil_div(positions, QK_RUN); }

/* Runs drawn of a sample: all of them when it has few. More samples than were planned give fewer and fewer rows. */
static int64_t runs_drawn(const qk_row_choice *c, int64_t sample, int64_t positions) {
    const int64_t runs = run_count(positions), samples = sample < c->samples ? c->samples : sample + 1;
    const int64_t wanted = run_count(qk_ceil_div(c->max_rows, samples));
    return wanted < runs ? wanted : runs;
}

int64_t qk_rows_per_sample(const qk_row_choice *c, int64_t positions) {
    const int64_t rows = runs_drawn(c, 0, positions) * QK_RUN;
    return rows < positions ? rows : positions;
}

/* Whether the i-th run of a sample is. Whole samples are held out where there are enough of them: rows of one image are
 * alike. */
static bool is_held_out(const qk_row_choice *c, int64_t sample, int64_t i) {
    const bool by_sample = c->holdout > 0 && c->samples / 2 >= c->holdout;
    const int64_t turn = by_sample ? sample : sample + i;
    return c->holdout > 0 && turn % c->holdout == c->holdout - 1;
}

void qk_planned_rows(const qk_row_choice *c, int64_t positions, int64_t planned[2]) {
    const int64_t runs = runs_drawn(c, 0, positions), length = qk_smaller(positions, QK_RUN);
    planned[0] = planned[1] = 0;
    for (int64_t sample = 0; sample < c->samples; sample++) {
        int64_t held_out = 0, rows = qk_rows_per_sample(c, positions);
        for (int64_t i = 0; i < runs; i++) held_out += is_held_out(c, sample, i);
        held_out = held_out == runs ? rows : held_out * length;
        planned[QK_HELD_OUT] += held_out;
        planned[QK_FITTED] += rows - held_out;
    }
}

int64_t qk_choose_rows(const qk_row_choice *c, int64_t sample, int64_t positions, int64_t *rows, int64_t *order,
                       int64_t *fitted) {
    const int64_t runs = run_count(positions), wanted = runs_drawn(c, sample, positions);
    qk_random random = qk_random_stream(c->seed, (uint64_t)sample);
    for (int64_t i = 0; i < runs; i++) order[i] = i;
    if (wanted < runs) {
        for (int64_t i = 0; i < wanted; i++) { /* the first steps of a Fisher-Yates shuffle */
            const int64_t j = i + (int64_t)qk_random_below(&random, (uint64_t)(runs - i));
            const int64_t t = order[i];
            order[i] = order[j];
            order[j] = t;
        }
        for (int64_t i = 1; i < wanted; i++) /* ascending again, for the cache */
            for (int64_t j = i; j > 0 && order[j] < order[j - 1]; j--) {
                const int64_t t = order[j];
                order[j] = order[j - 1];
                order[j - 1] = t;
            }
    }
    int64_t n = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < wanted; i++) {
            if (is_held_out(c, sample, i) != (pass == 1)) continue;
            for (int64_t p = order[i] * QK_RUN; p < (order[i] + 1) * QK_RUN && p < positions; p++) rows[n++] = p;
        }
        if (pass == 0) *fitted = n;
    }
    return n;
}
