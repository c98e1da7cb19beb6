/* The kernels of the gradient loops: every table against obvious loops in float64, and against the scalar one bit for
 * bit. */
#include "qk_test.h"
#include "tables.h"

enum { TAILS = 71, MOST = 700 }; /* lengths 0 .. 70, and around the blocks of soft_rounding_step */
static const size_t longer[] = {255, 256, 257, 511, 512, 513, 700};
enum { LENGTHS = TAILS + sizeof longer / sizeof *longer };

/* Runs check(table, n, shift) for every length; shift makes addresses aligned and unaligned. Scalar comes first. */
static void for_every_length(void (*check)(const qk_kernels *, size_t, size_t)) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (size_t i = 0; i < LENGTHS; i++)
        for (size_t shift = 0; shift < 2; shift++)
            for (int t = 0; t < count; t++) check(tables[t], i < TAILS ? i : longer[i - TAILS], shift);
}

/* ---- weighted_sum, output_error -------------------------------------------------------------- */

static void check_weighted_sum(const qk_kernels *k, size_t n, size_t shift) {
    enum { LINES = 6, GAP = 3 };
    qk_random random = {n + 1};
    const int64_t ld = (int64_t)n + GAP;
    float *x = qk_floats(&random, LINES * ld, -2, 2), *w = qk_floats(&random, LINES, -1, 1);
    float y[MOST + 2], scalar[MOST + 2];
    for (int64_t lines = 1; lines <= LINES; lines++) {
        for (size_t i = 0; i < n + 2; i++) y[i] = scalar[i] = -77;
        k->weighted_sum(y + shift, w, x, lines, ld, n);
        qk_kernels_scalar.weighted_sum(scalar + shift, w, x, lines, ld, n);
        CHECK_SAME(y, scalar, n + 2);
        for (size_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t j = 0; j < lines; j++) sum += (double)w[j] * x[(size_t)(j * ld) + i];
            CHECK_CLOSE(y[shift + i], sum, 1e-6);
        }
        CHECK(y[shift + n] == -77);
    }
    free(w);
    free(x);
}

static void weighted_sum_adds_lines(void) { for_every_length(check_weighted_sum); }

static void check_output_error(const qk_kernels *k, size_t n, size_t shift) {
    qk_random random = {n + 2};
    const float bias = 0.375f;
    float *out = qk_floats(&random, (int64_t)n, -3, 3), *target = qk_floats(&random, (int64_t)n, -3, 3);
    float got[MOST + 2] = {0}, scalar[MOST + 2] = {0};
    memcpy(got + shift, out, n * sizeof *out);
    memcpy(scalar + shift, out, n * sizeof *out);
    got[shift + n] = scalar[shift + n] = -77;
    const double squares = k->output_error(got + shift, target, bias, n);
    const double scalar_squares = qk_kernels_scalar.output_error(scalar + shift, target, bias, n);
    CHECK_SAME(got, scalar, n + 2);
    CHECK_SAME(&squares, &scalar_squares, 1);
    double expected = 0;
    for (size_t i = 0; i < n; i++) {
        const double error = (double)out[i] + bias - target[i];
        CHECK_CLOSE(got[shift + i], error, 1e-6);
        expected += error * error;
    }
    CHECK_CLOSE(squares, expected, 1e-5);
    CHECK(got[shift + n] == -77);
    free(target);
    free(out);
}

static void output_error_subtracts_and_sums_squares(void) { for_every_length(check_output_error); }

/* ---- what both steps have in common ---------------------------------------------------------- */

/* The arrays of either step, each with a guard value behind its end. */
typedef struct {
    size_t n, shift;
    float *variable, *m, *v, *base, *weight, *gradient; /* base: of AdaRound */
} state;

static float *guarded(qk_random *random, size_t n, size_t shift, float lo, float hi) {
    float *x = qk_floats(random, (int64_t)(n + shift + 1), lo, hi);
    x[n + shift] = -77;
    return x;
}

/* Weights of -3.. 3 at steps of 0.11 on the grid LO .. HI, some of them beyond it. Adam's averages are such that a step
 * is not all but a sign. */
static const float SCALE = 0.11f, ZP = 1, LO = -8, HI = 7;
static const float RATE = 0.02f, CORRECTION1 = 0.4f, CORRECTION2 = 0.05f;

static state state_new(size_t n, size_t shift, uint64_t seed) {
    qk_random r = {seed};
    state s = {.n = n,
               .shift = shift,
               .variable = guarded(&r, n, shift, -4, 4),
               .m = guarded(&r, n, shift, -0.5f, 0.5f),
               .v = guarded(&r, n, shift, 0.01f, 0.1f),
               .base = guarded(&r, n, shift, LO - 3, HI + 2),
               .weight = guarded(&r, n, shift, 0, 0),
               .gradient = guarded(&r, n, shift, -2, 2)};
    for (size_t i = 0; i < n + shift; i++) s.base[i] = rintf(s.base[i]);
    return s;
}

static void state_free(state *s) {
    float *arrays[] = {s->variable, s->m, s->v, s->base, s->weight, s->gradient};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static void check_same_state(const state *a, const state *b) {
    const size_t n = a->n + a->shift + 1;
    CHECK_SAME(a->variable, b->variable, n);
    CHECK_SAME(a->m, b->m, n);
    CHECK_SAME(a->v, b->v, n);
    CHECK_SAME(a->base, b->base, n);
    CHECK_SAME(a->weight, b->weight, n);
    CHECK_SAME(a->gradient, b->gradient, n);
}

/* Adam as its paper has it, with beta 0.9 and 0.999. */
static double adam(double *m, double *v, double g) {
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.999 * *v + 0.001 * g * g;
    return (double)RATE * (*m / CORRECTION1) / (sqrt(*v / CORRECTION2) + 1e-8);
}

/* Item i of `after` is that of `before` after a step along g. */
static void check_adam(const state *before, const state *after, size_t i, double g) {
    double m = before->m[i], v = before->v[i];
    const double step = adam(&m, &v, g);
    CHECK_CLOSE(after->m[i], m, 1e-5);
    CHECK_CLOSE(after->v[i], v, 1e-5);
    CHECK_CLOSE(after->variable[i], before->variable[i] - step, 1e-6);
}

/* ---- soft_rounding_step ---------------------------------------------------------------------- */

static qk_soft_rounding soft_rounding_of(const state *s, float *sigmoid) {
    return (qk_soft_rounding){.alpha = s->variable + s->shift,
                              .sigmoid = sigmoid + s->shift,
                              .m = s->m + s->shift,
                              .v = s->v + s->shift,
                              .base = s->base + s->shift,
                              .weight = s->weight + s->shift,
                              .scale = SCALE,
                              .zp = ZP,
                              .lo = LO,
                              .hi = HI};
}

static double soft_step(const qk_kernels *k, const state *s, float penalty, float beta) {
    float sigmoid[MOST + 2];
    qk_soft_rounding r = soft_rounding_of(s, sigmoid);
    r.penalty = penalty;
    r.beta = beta;
    k->soft_rounding_weights(&r, s->n);
    return k->soft_rounding_step(&r, s->gradient + s->shift, (qk_adam){RATE / CORRECTION1, 1 / CORRECTION2}, s->n);
}

static double soft_h(double alpha) { return fmin(fmax(1.2 / (1 + exp(-alpha)) - 0.1, 0), 1); }
static double soft_weight(double alpha, double base) { return SCALE * (fmin(fmax(base + soft_h(alpha), LO), HI) - ZP); }
static double regulariser(double alpha, double beta) { return 1 - pow(fabs(2 * soft_h(alpha) - 1), beta); }

/* The derivative by alpha of gradient * weight + penalty * regulariser, by the chain rule. */
static double soft_gradient(double alpha, double base, double gradient, double penalty, double beta) {
    const double s = 1 / (1 + exp(-alpha)), t = 1.2 * s - 0.1, h = soft_h(alpha), u = 2 * h - 1;
    if (t <= 0 || t >= 1) return 0;
    const double inside = base + h >= LO && base + h <= HI ? SCALE : 0;
    const double by_h = u == 0 ? 0 : -2 * beta * pow(fabs(u), beta - 1) * (u < 0 ? -1 : 1);
    return (gradient * inside + penalty * by_h) * 1.2 * s * (1 - s);
}

static const float penalties[] = {0, 0.01f, 1}, betas[] = {20, 7.3f, 2};

static void check_soft_rounding(const qk_kernels *k, size_t n, size_t shift) {
    for (int i = 0; i < 3; i++) {
        const uint64_t seed = n * 7 + (uint64_t)i;
        state before = state_new(n, shift, seed), got = state_new(n, shift, seed), scalar = state_new(n, shift, seed);
        const double total = soft_step(k, &got, penalties[i], betas[i]);
        const double scalar_total = soft_step(&qk_kernels_scalar, &scalar, penalties[i], betas[i]);
        check_same_state(&got, &scalar);
        CHECK_SAME(&total, &scalar_total, 1);
        double expected = 0;
        for (size_t j = shift; j < n + shift; j++) {
            const double alpha = before.variable[j], base = before.base[j];
            check_adam(&before, &got, j, soft_gradient(alpha, base, before.gradient[j], penalties[i], betas[i]));
            CHECK_CLOSE(got.weight[j], soft_weight(got.variable[j], base), 1e-6);
            expected += penalties[i] > 0 ? regulariser(alpha, betas[i]) : 0;
        }
        CHECK_CLOSE(total, expected, 1e-5);
        state_free(&before);
        state_free(&got);
        state_free(&scalar);
    }
}

static void soft_rounding_steps_along_its_gradient(void) { for_every_length(check_soft_rounding); }

/* From moments of 0 the first moment becomes a tenth of the gradient. */
static void soft_rounding_differentiates_weight_and_regulariser(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    const double step = 1e-5;
    for (int t = 0; t < count; t++)
        for (int kind = 0; kind < 4; kind++) { /* the weight alone, then the regulariser alone by its exponent */
            state s = state_new(MOST, 0, 11), before = state_new(MOST, 0, 11);
            for (size_t i = 0; i < MOST; i++) {
                s.m[i] = 0;
                if (kind > 0) s.gradient[i] = 0;
            }
            const double beta = betas[kind > 0 ? kind - 1 : 0];
            soft_step(tables[t], &s, kind > 0, (float)beta);
            for (size_t i = 0; i < MOST; i++) {
                const double up = before.variable[i] + step, down = before.variable[i] - step, base = before.base[i];
                const double difference =
                    kind ? regulariser(up, (float)beta) - regulariser(down, (float)beta)
                         : (double)before.gradient[i] * (soft_weight(up, base) - soft_weight(down, base));
                CHECK_CLOSE(10 * (double)s.m[i], difference / (2 * step), 2e-5);
            }
            state_free(&s);
            state_free(&before);
        }
}

/* The result of training: far out alpha is a rounding, and there is no way back. In the middle neither end pulls. */
static void soft_rounding_at_its_ends_and_in_the_middle(void) {
    static const float alphas[] = {-INFINITY, -3e38f, -1000, -80, -3, 0, -0.0f, 3, 80, 1000, 3e38f, INFINITY};
    enum { COUNT = sizeof alphas / sizeof *alphas, MIDDLE = 5 };
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int t = 0; t < count; t++) {
        state s = state_new(COUNT, 0, 12);
        for (size_t i = 0; i < COUNT; i++) {
            s.variable[i] = alphas[i];
            s.base[i] = 3;
            s.m[i] = 0;
            s.gradient[i] = i == MIDDLE || i == MIDDLE + 1 ? 0 : 1;
        }
        const double total = soft_step(tables[t], &s, 1, 20);
        CHECK_CLOSE(total, 2, 1e-6); /* of the two in the middle */
        for (size_t i = 0; i < COUNT; i++) {
            const double h = alphas[i] < 0 ? 0 : alphas[i] > 0 ? 1 : 0.5;
            CHECK_CLOSE(s.weight[i], SCALE * (3 + h - ZP), 1e-6);
            CHECK(s.m[i] == 0);
            CHECK(s.variable[i] == alphas[i]);
        }
        state_free(&s);
    }
}

/* With scale 1 and base 0 the weight is h itself: as precise as float32 allows. */
static void the_rectified_sigmoid_is_precise(void) {
    enum { COUNT = 8001 };
    static float alpha[COUNT], base[COUNT], weight[COUNT];
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int i = 0; i < COUNT; i++) alpha[i] = (float)(i - COUNT / 2) / 1000;
    for (int t = 0; t < count; t++) {
        float sigmoid[COUNT];
        const qk_soft_rounding r = {
            .alpha = alpha, .sigmoid = sigmoid, .base = base, .weight = weight, .scale = 1, .lo = LO, .hi = HI};
        tables[t]->soft_rounding_weights(&r, COUNT);
        for (int i = 0; i < COUNT; i++) CHECK(fabs(weight[i] - soft_h(alpha[i])) <= 3e-7);
    }
}

static void check_soft_weight_only(const qk_kernels *k, size_t n, size_t shift) {
    state before = state_new(n, shift, n), s = state_new(n, shift, n);
    float sigmoid[MOST + 2];
    const qk_soft_rounding r = soft_rounding_of(&s, sigmoid);
    k->soft_rounding_weights(&r, n);
    for (size_t i = shift; i < n + shift; i++) CHECK_CLOSE(s.weight[i], soft_weight(s.variable[i], s.base[i]), 1e-6);
    memcpy(before.weight, s.weight, (n + shift + 1) * sizeof *s.weight);
    CHECK(s.weight[n + shift] == -77);
    check_same_state(&s, &before); /* nothing else has changed */
    state_free(&before);
    state_free(&s);
}

static void the_soft_weight_is_set_alone(void) { for_every_length(check_soft_weight_only); }

/* ---- straight_through_step ------------------------------------------------------------------- */

static qk_straight_through straight_through_of(const state *s) {
    return (qk_straight_through){.real = s->variable + s->shift,
                                 .m = s->m + s->shift,
                                 .v = s->v + s->shift,
                                 .weight = s->weight + s->shift,
                                 .scale = SCALE,
                                 .zp = ZP,
                                 .lo = LO,
                                 .hi = HI};
}

static void straight_step(const qk_kernels *k, const state *s) {
    const qk_straight_through r = straight_through_of(s);
    k->straight_through_step(&r, s->gradient + s->shift, (qk_adam){RATE / CORRECTION1, 1 / CORRECTION2}, s->n);
}

static float quantized(float real) { /* as ONNX divides and rounds, half to even */
    const double q = fmin(fmax(nearbyint((double)(real / SCALE)) + ZP, LO), HI);
    return SCALE * (float)(q - ZP);
}

/* Values at steps of half the scale, so that some are ties and some on the edge of the grid. */
static void put_ties(state *s) {
    for (size_t i = 0; i < s->n; i += 3) s->variable[s->shift + i] = SCALE * 0.5f * ((float)(i % 80) - 40);
}

static void check_straight_through(const qk_kernels *k, size_t n, size_t shift) {
    state states[3]; /* before, got, scalar */
    for (int i = 0; i < 3; i++) {
        states[i] = state_new(n, shift, n + 5);
        put_ties(&states[i]);
    }
    const state *before = &states[0], *got = &states[1];
    straight_step(k, got);
    straight_step(&qk_kernels_scalar, &states[2]);
    check_same_state(got, &states[2]);
    int64_t inside_grid = 0;
    for (size_t i = shift; i < n + shift; i++) {
        const double q = nearbyint((double)(before->variable[i] / SCALE)) + ZP;
        const bool inside = q >= LO && q <= HI;
        inside_grid += inside;
        check_adam(before, got, i, inside ? before->gradient[i] : 0);
        CHECK(got->weight[i] == quantized(got->variable[i]));
    }
    CHECK(n < 40 || (inside_grid > 0 && inside_grid < (int64_t)n)); /* both were tried */
    for (int i = 0; i < 3; i++) state_free(&states[i]);
}

static void straight_through_steps_inside_the_grid(void) { for_every_length(check_straight_through); }

static void check_quantized_weight_only(const qk_kernels *k, size_t n, size_t shift) {
    state before = state_new(n, shift, n + 6), s = state_new(n, shift, n + 6);
    put_ties(&before);
    put_ties(&s);
    const qk_straight_through r = straight_through_of(&s);
    k->straight_through_weights(&r, n);
    for (size_t i = shift; i < n + shift; i++) CHECK(s.weight[i] == quantized(s.variable[i]));
    memcpy(before.weight, s.weight, (n + shift + 1) * sizeof *s.weight);
    CHECK(s.weight[n + shift] == -77);
    check_same_state(&s, &before);
    state_free(&before);
    state_free(&s);
}

static void the_quantized_weight_is_set_alone(void) { for_every_length(check_quantized_weight_only); }

/* ---- Adam ------------------------------------------------------------------------------------ */

/* Whatever the size of a constant gradient, every corrected step is as long as the rate. */
static void adam_steps_are_as_long_as_the_rate(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    const float sizes[] = {1e-3f, -1, 1e3f, 0};
    for (int t = 0; t < count; t++)
        for (int i = 0; i < 4; i++) {
            float real = 0, m = 0, v = 0, weight = 0;
            const qk_straight_through r = {&real, &m, &v, &weight, 1, 0, -100, 100};
            for (int step = 1; step <= 50; step++) {
                tables[t]->straight_through_step(&r, &sizes[i], qk_adam_at(0.01, step), 1);
                const double sign = sizes[i] > 0 ? 1 : sizes[i] < 0 ? -1 : 0;
                CHECK(fabs(real + 0.01 * step * sign) <= 1e-4 * 0.01 * step);
            }
        }
}

/* What is far below 1e-8 ends at zero instead of becoming denormal; nothing larger does. */
static void averages_that_fade_away_end_at_zero(void) {
    const qk_kernels *tables[MOST_TABLES];
    const int count = runnable(tables);
    for (int t = 0; t < count; t++) {
        float variable[] = {0, 0, 0, 0}, m[] = {1.05e-30f, -1e-29f, 0, 0}, v[] = {1.0005e-30f, 1e-29f, 0, 0};
        const float gradient[] = {0, 0, 1e-14f, 1e-16f};
        tables[t]->adam(variable, m, v, gradient, qk_adam_at(0.01, 1), 4);
        CHECK(m[0] == 0 && v[0] == 0);
        CHECK(m[1] < -8e-30f && v[1] > 9e-30f);
        CHECK(m[2] > 9e-16f && variable[2] < 0);
        CHECK(m[3] == 0 && variable[3] == 0);
    }
}

QK_TESTS(QK_TEST(weighted_sum_adds_lines), QK_TEST(output_error_subtracts_and_sums_squares),
         QK_TEST(soft_rounding_steps_along_its_gradient), QK_TEST(soft_rounding_differentiates_weight_and_regulariser),
         QK_TEST(soft_rounding_at_its_ends_and_in_the_middle), QK_TEST(the_rectified_sigmoid_is_precise),
         QK_TEST(the_soft_weight_is_set_alone), QK_TEST(straight_through_steps_inside_the_grid),
         QK_TEST(the_quantized_weight_is_set_alone), QK_TEST(adam_steps_are_as_long_as_the_rate),
         QK_TEST(averages_that_fade_away_end_at_zero))
