/* When training ends: verdicts on sequences of losses written down by hand. */
#include "training/early_stop.h"

#include "qk_test.h"

/* Adds the losses of one window, which says nothing before its end; returns what it then says. */
static qk_verdict add_window(qk_early_stop *e, const double *losses) {
    for (int64_t i = 0; i + 1 < e->window; i++) CHECK(qk_early_stop_add(e, losses[i]) == QK_GO_ON);
    return qk_early_stop_add(e, losses[e->window - 1]);
}

static void the_first_window_is_always_a_new_best(void) {
    const double losses[] = {1e300, 0, -5, 7};
    for (size_t i = 0; i < sizeof losses / sizeof *losses; i++) {
        qk_early_stop e = qk_early_stop_start(1, 0);
        CHECK(qk_early_stop_add(&e, losses[i]) == QK_NEW_BEST);
        CHECK(e.best == losses[i]);
    }
}

static void windows_are_compared_by_their_mean(void) {
    qk_early_stop e = qk_early_stop_start(3, 0);
    CHECK(add_window(&e, (double[]){1, 2, 6}) == QK_NEW_BEST); /* 3 */
    CHECK(e.best == 3);
    CHECK(add_window(&e, (double[]){8, 0, 0}) == QK_NEW_BEST); /* 8/3: the single 8 does no harm */
    CHECK(add_window(&e, (double[]){0, 0, 9}) == QK_STOP);     /* 3: the single zeros do no good */
}

static void only_strictly_better_counts(void) {
    qk_early_stop e = qk_early_stop_start(2, 1);
    CHECK(add_window(&e, (double[]){4, 4}) == QK_NEW_BEST);
    CHECK(add_window(&e, (double[]){3, 5}) == QK_GO_ON); /* equal: the patience is used up */
    CHECK(add_window(&e, (double[]){4, 4}) == QK_STOP);
}

static void patience_lets_windows_pass(void) {
    for (int64_t patience = 0; patience < 4; patience++) {
        qk_early_stop e = qk_early_stop_start(2, patience);
        CHECK(add_window(&e, (double[]){1, 1}) == QK_NEW_BEST);
        for (int64_t i = 0; i < patience; i++) CHECK(add_window(&e, (double[]){2, 2}) == QK_GO_ON);
        CHECK(add_window(&e, (double[]){2, 2}) == QK_STOP);
    }
}

static void a_new_best_restores_patience(void) {
    qk_early_stop e = qk_early_stop_start(1, 1);
    const struct {
        double loss;
        qk_verdict verdict;
    } steps[] = {{5, QK_NEW_BEST}, {6, QK_GO_ON}, {4, QK_NEW_BEST}, {4.5, QK_GO_ON},
                 {3, QK_NEW_BEST}, {3, QK_GO_ON}, {3.5, QK_STOP}}; /* worse than 3, though better than 4 */
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        CHECK(qk_early_stop_add(&e, steps[i].loss) == steps[i].verdict);
    CHECK(e.best == 3);
}

static void a_window_below_one_step_is_one_step(void) {
    for (int64_t window = -1; window <= 1; window++) {
        qk_early_stop e = qk_early_stop_start(window, 0);
        CHECK(qk_early_stop_add(&e, 2) == QK_NEW_BEST);
        CHECK(qk_early_stop_add(&e, 1) == QK_NEW_BEST);
        CHECK(qk_early_stop_add(&e, 1) == QK_STOP);
    }
}

static void a_loss_that_is_not_a_number_is_no_improvement(void) {
    qk_early_stop e = qk_early_stop_start(1, 1);
    CHECK(qk_early_stop_add(&e, 2) == QK_NEW_BEST);
    CHECK(qk_early_stop_add(&e, NAN) == QK_GO_ON);
    CHECK(qk_early_stop_add(&e, 1) == QK_NEW_BEST); /* the window of the NaN is over */
    CHECK(qk_early_stop_add(&e, INFINITY) == QK_GO_ON);
    CHECK(qk_early_stop_add(&e, NAN) == QK_STOP);
}

QK_TESTS(QK_TEST(the_first_window_is_always_a_new_best), QK_TEST(windows_are_compared_by_their_mean),
         QK_TEST(only_strictly_better_counts), QK_TEST(patience_lets_windows_pass),
         QK_TEST(a_new_best_restores_patience), QK_TEST(a_window_below_one_step_is_one_step),
         QK_TEST(a_loss_that_is_not_a_number_is_no_improvement))
