/* Phases against what every tap of every output sees, by the definition of ConvTranspose. */
#include "ops/phases.h"

#include "reference.h"

/* Whether a tap of an output sees an input, on all axes. */
static bool sees(const qk_geometry *g, const qk_tensor *x, int64_t position, int64_t tap) {
    bool inside = true;
    for (int i = g->spatial - 1; i >= 0; i--) {
        const ref_axis axis = ref_axis_of(g, i, x->dims[i + 2]);
        inside &= ref_input(&axis, position % axis.out, tap % axis.kernel) >= 0;
        position /= axis.out;
        tap /= axis.kernel;
    }
    return inside;
}

static void check_phases(const qk_geometry *g, const qk_tensor *x) {
    qk_extent e;
    CHECK(qk_extent_of(g, x, NULL, &e) == QK_OK);
    const qk_phases p = qk_phases_of(g);
    int64_t *positions = MEMORY(int64_t, e.positions), *sorted = MEMORY(int64_t, e.positions);
    int64_t *scratch = MEMORY(int64_t, e.positions), *ends = MEMORY(int64_t, p.count);
    int64_t *which = MEMORY(int64_t, e.taps), *taps_seen = MEMORY(int64_t, e.taps), n = 0, first = 0;
    for (int64_t i = 0; i < e.positions; i++)
        if (i % 7 != 3) positions[n++] = i;
    qk_sort_by_phase(&p, g, &e, positions, n, &(qk_phase_order){sorted, ends, scratch});
    int64_t *counted = MEMORY(int64_t, e.positions);
    for (int64_t phase = 0; phase < p.count; first = ends[phase++]) {
        const int64_t taps = qk_phase_taps(&p, g, phase, which);
        CHECK(taps == qk_phase_taps(&p, g, phase, NULL));
        for (int64_t t = 0; t < taps; t++) {
            CHECK(t == 0 || which[t] > which[t - 1]);
            taps_seen[which[t]]++;
        }
        for (int64_t i = first; i < ends[phase]; i++) {
            CHECK(i == first || sorted[i] > sorted[i - 1]); /* in the order they came in */
            counted[sorted[i]]++;
            int64_t inside = 0, all = 0;
            for (int64_t t = 0; t < taps; t++) inside += sees(g, x, sorted[i], which[t]);
            for (int64_t tap = 0; tap < e.taps; tap++) all += sees(g, x, sorted[i], tap);
            CHECK(inside == all); /* no tap of another phase sees anything */
        }
    }
    CHECK(first == n);
    for (int64_t i = 0; i < e.positions; i++) CHECK(counted[i] == (i % 7 != 3));
    for (int64_t tap = 0; tap < e.taps; tap++) CHECK(taps_seen[tap] == 1);
    int64_t *arrays[] = {positions, sorted, scratch, ends, which, taps_seen, counted};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

static void rows_of_a_phase_see_its_taps_alone(void) {
    qk_random r = {3};
    for (int i = 0; i < REF_CASES; i++) {
        if (ref_cases[i].geometry.spatial == 0) continue;
        qk_tensor x = ref_tensor(&r, QK_F32, ref_cases[i].x_ndim, ref_cases[i].x_dims);
        check_phases(&ref_cases[i].geometry, &x);
        ref_free(&x);
    }
}

/* All small kernels, strides and dilations. */
static void every_remainder_finds_its_taps(void) {
    const int64_t dims[] = {1, 1, 5};
    qk_random r = {4};
    qk_tensor x = ref_tensor(&r, QK_F32, 3, dims);
    for (int64_t i = 0; i < 5 * 7 * 7; i++) {
        const int64_t kernel = i % 5 + 1, stride = i / 5 % 7 + 1, dilation = i / 35 + 1;
        const qk_geometry g = {1, QK_PAD_EXPLICIT, 1, 1, kernel, {kernel}, {stride}, {dilation}, {1}, {0}, true};
        check_phases(&g, &x);
    }
    ref_free(&x);
}

/* No more than there have to be: taps that see the same outputs are together, and so are outputs that see none. */
static void phases_are_counted(void) {
    const qk_geometry g = {3, QK_PAD_EXPLICIT, 2, 2, 24, {1, 4, 3}, {2, 4, 3}, {1, 2, 3}, {0}, {0}, true};
    const qk_phases p = qk_phases_of(&g);
    CHECK(p.count == 1 * 2 * 1 + 1);
    CHECK(qk_phase_taps(&p, &g, 0, NULL) == 6 && qk_phase_taps(&p, &g, 2, NULL) == 0);
    const qk_geometry apart = {2, QK_PAD_EXPLICIT, 1, 2, 16, {4, 4}, {2, 2}, {1, 1}, {0}, {0}, true};
    CHECK(qk_phases_of(&apart).count == 4);
    qk_geometry conv = apart;
    conv.transposed = false;
    CHECK(qk_phases_of(&conv).count == 1);
    qk_geometry plain = apart;
    plain.stride[0] = plain.stride[1] = 1;
    CHECK(qk_phases_of(&plain).count == 1);
}

QK_TESTS(QK_TEST(rows_of_a_phase_see_its_taps_alone), QK_TEST(every_remainder_finds_its_taps),
         QK_TEST(phases_are_counted))
