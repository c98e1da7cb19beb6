#include "ops/phases.h"

#include "base/sizes.h"

static int64_t greatest_divisor(int64_t a, int64_t b) { return b ? greatest_divisor(b, a % b) : a; }

/* Tap k sees the outputs with the remainder k * dilation % stride (plus the padding), which repeats after
 * stride / gcd(stride, dilation) taps. */
qk_phases qk_phases_of(const qk_geometry *g) {
    qk_phases p = {.count = 1, .tap_phases = 1, .classes = {1, 1, 1}};
    bool all_see = true;
    for (int i = 0; i < g->spatial && g->transposed; i++) {
        const int64_t period = g->stride[i] / greatest_divisor(g->stride[i], g->dilation[i]);
        p.classes[i] = g->kernel[i] < period ? g->kernel[i] : period;
        p.tap_phases *= p.classes[i];
        all_see &= p.classes[i] == g->stride[i];
    }
    p.count = p.tap_phases + (g->transposed && !all_see);
    return p;
}

/* Along an axis the phase sees the taps first, first + classes, ...; so many of them. */
static int64_t taps_along(const qk_phases *p, const qk_geometry *g, int axis, int64_t first) {
    return qk_ceil_div(g->kernel[axis] - first, p->classes[axis]);
}

int64_t qk_phase_taps(const qk_phases *p, const qk_geometry *g, int64_t phase, int64_t *which) {
    int64_t first[QK_MAX_SPATIAL], taps = 1, rest = phase;
    if (phase >= p->tap_phases) return 0;
    for (int i = g->spatial - 1; i >= 0; i--) {
        first[i] = rest % p->classes[i];
        rest /= p->classes[i];
        taps *= taps_along(p, g, i, first[i]);
    }
    for (int64_t n = 0; n < taps && which; n++) {
        int64_t tap = 0, scale = 1, line = n;
        for (int i = g->spatial - 1; i >= 0; i--) {
            const int64_t count = taps_along(p, g, i, first[i]);
            tap += (first[i] + line % count * p->classes[i]) * scale;
            scale *= g->kernel[i];
            line /= count;
        }
        which[n] = tap;
    }
    return taps;
}

static int64_t phase_of(const qk_phases *p, const qk_geometry *g, const qk_extent *e, int64_t position) {
    int64_t phase = 0, scale = 1;
    for (int i = g->spatial - 1; i >= 0; i--) {
        const int64_t remainder = (position % e->out[i] + e->pad[i]) % g->stride[i];
        int64_t class = 0;
        while (class < p->classes[i] && class * g->dilation[i] % g->stride[i] != remainder) class++;
        if (class == p->classes[i]) return p->tap_phases;
        phase += class * scale;
        scale *= p->classes[i];
        position /= e->out[i];
    }
    return phase;
}

void qk_sort_by_phase(const qk_phases *p, const qk_geometry *g, const qk_extent *e, const int64_t *positions, int64_t n,
                      const qk_phase_order *order) {
    int64_t *sorted = order->sorted, *ends = order->ends, *scratch = order->scratch;
    for (int64_t i = 0; i < p->count; i++) ends[i] = 0;
    for (int64_t i = 0; i < n; i++) ends[scratch[i] = p->count > 1 ? phase_of(p, g, e, positions[i]) : 0]++;
    for (int64_t i = 1; i < p->count; i++) ends[i] += ends[i - 1];
    for (int64_t i = n - 1; i >= 0; i--) sorted[--ends[scratch[i]]] = positions[i]; /* from the last: a stable sort */
    for (int64_t i = 0; i + 1 < p->count; i++) ends[i] = ends[i + 1];               /* they are the beginnings now */
    ends[p->count - 1] = n;
}
