/* Every CalibMethod of an activation against counts, sums and searches over the values themselves. */
#include "qk_test.h"

enum { BINS = 2048, N = 20000 };

typedef struct {
    const char *name;
    float *x; /* (N) */
    qk_value_range *range;
} fixture;

typedef enum { NORMAL, HEAVY, POSITIVE, NEGATIVE, RECTIFIED, SKEWED, KINDS } kind;

static double normal(qk_random *r) {
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += qk_uniform(r, -0.5, 0.5);
    return sum;
}

static float value(qk_random *r, kind k) {
    const double z = normal(r);
    switch (k) {
    case NORMAL: return (float)z;
    case HEAVY: return (float)(z * z * z);
    case POSITIVE: return (float)(fabs(z) + 0.1);
    case NEGATIVE: return (float)(-fabs(z * z * z) - 0.1);
    case RECTIFIED: return (float)fmax(0, z * z * z);
    default: return (float)(z < 0 ? z * 0.1 : z * z * z);
    }
}

static fixture fixture_new(kind k, uint64_t seed) {
    qk_random r = {seed};
    fixture f = {.x = MEMORY(float, N), .range = qk_value_range_new(BINS)};
    for (int i = 0; i < N; i++) f.x[i] = value(&r, k) * 3;
    const float *x = f.x;
    const size_t n = N;
    size_t bad;
    CHECK(qk_value_ranges_update(&f.range, &x, &n, 1, &bad) == QK_OK);
    return f;
}

static void fixture_free(fixture *f) {
    qk_value_range_free(f->range);
    free(f->x);
}

static const qk_grid grids[] = {{0, 255, false, QK_SCALE_FLOAT32},      {-127, 127, true, QK_SCALE_FLOAT32},
                                {0, 15, false, QK_SCALE_FLOAT32},       {-7, 7, true, QK_SCALE_FLOAT32},
                                {-127, 127, true, QK_SCALE_POWER_OF_2}, {0, 15, false, QK_SCALE_POWER_OF_2}};
enum { GRIDS = sizeof grids / sizeof *grids };

static double width_of(const fixture *f) {
    uint64_t counts[2 * BINS];
    return qk_value_range_histogram(f->range, counts);
}

/* Mean of |x - Q(x)|, or of its square, over the values themselves. */
static double error(const fixture *f, float lo, float hi, qk_grid grid, bool squared) {
    const qk_affine a = qk_affine_from_range(lo, hi, grid);
    float *y = MEMORY(float, N);
    double sum = 0;
    qk_fake_quant(y, f->x, N, a, grid);
    for (int i = 0; i < N; i++) {
        const double d = fabs((double)y[i] - f->x[i]);
        sum += (squared ? d * d : d) / N;
    }
    free(y);
    return sum;
}

static void minimum_and_maximum_and_what_is_symmetric(void) {
    for (kind k = 0; k < KINDS; k++) {
        fixture f = fixture_new(k, 1);
        const float least = qk_value_range_min(f.range), greatest = qk_value_range_max(f.range);
        float lo, hi;
        qk_value_range_choose(f.range, &(qk_range_choice){.method = QK_RANGE_MIN_MAX}, &lo, &hi);
        CHECK(lo == least && hi == greatest);
        qk_value_range_choose(f.range, &(qk_range_choice){.method = QK_RANGE_DISTRIBUTION}, &lo, &hi);
        CHECK(hi == fmaxf(-least, greatest) && lo == -hi);
        fixture_free(&f);
    }
}

static int64_t outside(const fixture *f, double lo, double hi, bool below) {
    int64_t count = 0;
    for (int i = 0; i < N; i++) count += below ? f->x[i] < lo : f->x[i] > hi;
    return count;
}

static void a_percentile_leaves_out_what_it_says(void) {
    const double percentiles[] = {50, 90, 99, 99.9, 100};
    for (kind k = 0; k < KINDS; k++) {
        fixture f = fixture_new(k, 2);
        const double width = width_of(&f);
        for (int p = 0; p < 5; p++)
            for (int two_sided = 0; two_sided < 2; two_sided++) {
                const qk_range_choice c = {.method = QK_RANGE_PERCENTILE,
                                           .two_sided = two_sided,
                                           .percentiles = percentiles + p,
                                           .percentile_count = 1};
                float lo, hi;
                qk_value_range_choose(f.range, &c, &lo, &hi);
                CHECK(lo >= qk_value_range_min(f.range) && hi <= qk_value_range_max(f.range));
                const double out = (100 - percentiles[p]) / 100 * N + 1e-6;
                if (two_sided) {
                    CHECK((double)outside(&f, lo, hi, true) <= out / 2);
                    CHECK((double)outside(&f, lo, hi, false) <= out / 2);
                    /* a bin less would be too much; not where the range ends with the values */
                    CHECK((double)outside(&f, lo + width * 1.001, hi, true) >= out / 2 - 1);
                    CHECK((double)outside(&f, lo, hi - width * 1.001, false) >= out / 2 - 1);
                } else {
                    const double t = fmax(-(double)lo, hi);
                    CHECK((double)(outside(&f, -t, t, true) + outside(&f, -t, t, false)) <= out);
                    const double s = t - width * 1.001;
                    CHECK((double)(outside(&f, -s, s, true) + outside(&f, -s, s, false)) >= out - 1);
                }
            }
        fixture_free(&f);
    }
}

static void no_range_has_much_less_squared_error(void) {
    for (kind k = 0; k < KINDS; k++) {
        fixture f = fixture_new(k, 3);
        const double least = fmin(0, qk_value_range_min(f.range)), greatest = fmax(0, qk_value_range_max(f.range));
        for (int g = 0; g < GRIDS; g++) {
            const qk_range_choice c = {.method = QK_RANGE_MIN_MSE, .grid = grids[g]};
            float lo, hi;
            qk_value_range_choose(f.range, &c, &lo, &hi);
            const double chosen = error(&f, lo, hi, grids[g], true);
            double best = INFINITY;
            for (int i = 0; i <= 48; i++)
                for (int j = 0; j <= (grids[g].symmetric ? 0 : 48); j++) {
                    if (!grids[g].symmetric && ((least == 0 && i > 0) || (greatest == 0 && j > 0))) continue;
                    const double t = fmax(-least, greatest) * exp2(-i / 8.0);
                    const double low = grids[g].symmetric ? -t : least * exp2(-i / 8.0);
                    const double high = grids[g].symmetric ? t : greatest * exp2(-j / 8.0);
                    best = fmin(best, error(&f, (float)low, (float)high, grids[g], true));
                }
            CHECK(chosen <= best * 1.03);
        }
        fixture_free(&f);
    }
}

static void of_candidates_the_one_with_the_least_error(void) {
    const double candidates[] = {90, 99, 99.9, 100};
    for (kind k = 0; k < KINDS; k++) {
        fixture f = fixture_new(k, 4);
        for (int g = 0; g < GRIDS; g++)
            for (int squared = 0; squared < 2; squared++) {
                qk_range_choice c = {.method = QK_RANGE_LAYERWISE_PERCENTILE,
                                     .grid = grids[g],
                                     .percentiles = candidates,
                                     .percentile_count = 4,
                                     .squared = squared};
                float lo, hi, low, high;
                qk_value_range_choose(f.range, &c, &lo, &hi);
                const double chosen = error(&f, lo, hi, grids[g], squared);
                bool found = false;
                c.method = QK_RANGE_PERCENTILE;
                for (int i = 0; i < 4; i++) {
                    c.percentiles = candidates + i;
                    qk_value_range_choose(f.range, &c, &low, &high);
                    CHECK(chosen <= error(&f, low, high, grids[g], squared) * 1.02);
                    found |= low == lo && high == hi;
                }
                CHECK(found);
            }
        fixture_free(&f);
    }
}

/* KL divergence of the histogram clipped to (-half, half) from what `levels` levels make of the part inside. */
static double naive_divergence(const double *counts, int half, int levels) {
    double p[2 * BINS] = {0}, q[2 * BINS] = {0}, total = 0, inside = 0, empty = 0, sum = 0;
    const int begin = BINS - half, end = BINS + half, per_level = 2 * half / levels;
    for (int b = 0; b < 2 * BINS; b++) {
        p[b < begin ? begin : b >= end ? end - 1 : b] += counts[b];
        total += counts[b];
    }
    for (int first = begin; first < end; first += per_level) {
        double mass = 0, filled = 0;
        for (int b = first; b < first + per_level; b++) {
            mass += counts[b];
            filled += p[b] > 0;
        }
        for (int b = first; b < first + per_level; b++) q[b] = p[b] == 0 ? 0 : mass > 0 ? mass / filled : 1e-4;
        empty += mass > 0 ? 0 : 1e-4 * filled;
        inside += mass;
    }
    if (inside == 0) return INFINITY;
    inside += empty;
    for (int b = begin; b < end; b++) sum += p[b] > 0 ? p[b] / total * log(p[b] / total / (q[b] / inside)) : 0;
    return sum;
}

static void entropy_takes_the_window_with_the_least_divergence(void) {
    for (kind k = 0; k < KINDS; k++)
        for (int levels = 32; levels <= 128; levels *= 2) {
            fixture f = fixture_new(k, 5);
            uint64_t exact[2 * BINS];
            double counts[2 * BINS], least = INFINITY;
            const double width = qk_value_range_histogram(f.range, exact);
            for (int b = 0; b < 2 * BINS; b++) counts[b] = (double)exact[b];
            counts[BINS] = fmin(counts[BINS], counts[BINS + 1]); /* zero is exact */
            float lo, hi;
            const qk_range_choice c = {.method = QK_RANGE_ENTROPY, .levels = levels};
            qk_value_range_choose(f.range, &c, &lo, &hi);
            const double t = fmax(-(double)lo, hi);
            double chosen = NAN;
            for (int half = levels / 2; half <= BINS; half += levels / 2) {
                const double d = naive_divergence(counts, half, levels);
                least = fmin(least, d);
                const bool all = half * width > fmax(-qk_value_range_min(f.range), qk_value_range_max(f.range));
                if (half * width == t || (all && isnan(chosen))) chosen = d;
                if (all) break;
            }
            CHECK(chosen <= least + 1e-9);
            CHECK(lo >= qk_value_range_min(f.range) && hi <= qk_value_range_max(f.range));
            fixture_free(&f);
        }
}

static void nothing_and_zeros_have_no_range(void) {
    const float zeros[3] = {0};
    const float *x = zeros;
    const size_t n = 3;
    const double percentile = 99;
    size_t bad;
    for (int some = 0; some < 2; some++) {
        qk_value_range *range = qk_value_range_new(BINS);
        if (some) CHECK(qk_value_ranges_update(&range, &x, &n, 1, &bad) == QK_OK);
        for (int m = QK_RANGE_MIN_MAX; m <= QK_RANGE_LAYERWISE_PERCENTILE; m++) {
            const qk_range_choice c = {.method = (qk_range_method)m,
                                       .grid = grids[0],
                                       .percentiles = &percentile,
                                       .percentile_count = 1,
                                       .levels = 8};
            float lo = 9, hi = 9;
            qk_value_range_choose(range, &c, &lo, &hi);
            CHECK(lo == 0 && hi == 0);
        }
        qk_value_range_free(range);
    }
}

QK_TESTS(QK_TEST(minimum_and_maximum_and_what_is_symmetric), QK_TEST(a_percentile_leaves_out_what_it_says),
         QK_TEST(no_range_has_much_less_squared_error), QK_TEST(of_candidates_the_one_with_the_least_error),
         QK_TEST(entropy_takes_the_window_with_the_least_divergence), QK_TEST(nothing_and_zeros_have_no_range))
