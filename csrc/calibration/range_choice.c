/* CalibMethod of an activation: from the histogram that a pass left to the range that the integers cover.
 * docs/numerics.md says what each method means and where it comes from. */
#include <math.h>

#include "calibration/value_range.h"

typedef struct {
    float lo, hi;
} range;

/* The bins that hold something, from -bins to bins: first .. end - 1. */
typedef struct {
    int first, end;
    double width;
} extent;

static extent extent_of(const qk_value_range *r) {
    const double width = ldexp(1, r->exponent);
    return (extent){.first = r->lo < 0 ? (int)fmax(-r->bins, -floor(-(double)r->lo / width) - 1) : 0,
                    .end = r->hi >= 0 ? (int)fmin(r->bins, floor((double)r->hi / width) + 1) : 0,
                    .width = width};
}

/* No wider than what was seen. Where all values are on one side of 0 and beyond the cut, both ends are the cut. */
static range within(const qk_value_range *r, double lo, double hi) {
    range found = {fmaxf(r->lo, (float)lo), fminf(r->hi, (float)hi)};
    if (found.lo > found.hi) {
        if (r->hi < 0)
            found.hi = found.lo;
        else
            found.lo = found.hi;
    }
    return found;
}

/* ---- percentiles ----------------------------------------------------------------------------- */

/* The bin edges with at least so many values on one side. */
static double edge_above(const qk_value_range *r, double wanted) {
    const extent e = extent_of(r);
    uint64_t seen = 0;
    for (int bin = e.first; bin < e.end; bin++) {
        seen += qk_value_range_in(r, bin);
        if ((double)seen >= wanted) return (bin + 1) * e.width;
    }
    return e.end * e.width;
}

static double edge_below(const qk_value_range *r, double wanted) {
    const extent e = extent_of(r);
    uint64_t seen = 0;
    for (int bin = e.end - 1; bin >= e.first; bin--) {
        seen += qk_value_range_in(r, bin);
        if ((double)seen >= wanted) return bin * e.width;
    }
    return e.first * e.width;
}

static range percentile(const qk_value_range *r, const qk_range_choice *c, double percentile) {
    if (c->two_sided) {
        const double wanted = (100 + percentile) / 200 * (double)r->count;
        return within(r, edge_below(r, wanted), edge_above(r, wanted));
    }
    const float t = qk_value_range_percentile(r, percentile);
    return within(r, -t, t);
}

/* ---- the error of a grid --------------------------------------------------------------------- */

/* The integral from 0 to t of |u - q(u)|, or of its square, q the nearest of the integers first .. last. */
static double integral(double t, double first, double last, bool squared) {
    const double n = fmin(fmax(rint(t), first), last), d = t - n;
    return squared ? n / 12 + d * d * d / 3 : n / 4 + d * fabs(d) / 2;
}

/* Mean error of Q/DQ, squared or absolute; the values of a bin count as spread evenly over it. */
static double mean_error(const qk_value_range *r, range candidate, const qk_range_choice *c, bool squared) {
    const extent e = extent_of(r);
    const qk_affine a = qk_affine_from_range(candidate.lo, candidate.hi, c->grid);
    const double first = (double)c->grid.qmin - a.zero_point, last = (double)c->grid.qmax - a.zero_point;
    const double step = e.width / a.scale; /* a bin, in steps of the grid */
    double sum = 0, left = integral(e.first * step, first, last, squared);
    for (int bin = e.first; bin < e.end; bin++) {
        const double right = integral((bin + 1) * step, first, last, squared);
        sum += (double)qk_value_range_in(r, bin) * (right - left);
        left = right;
    }
    return sum / step / (double)r->count * (squared ? (double)a.scale * a.scale : a.scale);
}

static range layerwise_percentile(const qk_value_range *r, const qk_range_choice *c) {
    range best = {r->lo, r->hi};
    double least = INFINITY;
    for (int i = 0; i < c->percentile_count; i++) {
        const range candidate = percentile(r, c, c->percentiles[i]);
        const double error = mean_error(r, candidate, c, c->squared);
        const bool wider = candidate.lo <= best.lo && candidate.hi >= best.hi;
        if (error < least || (error == least && wider)) {
            least = error;
            best = candidate;
        }
    }
    return best;
}

/* ---- least squared error --------------------------------------------------------------------- */

enum { COARSE = 4, LADDER = 96 }; /* factors 2^(-i/16), i = 0 .. LADDER, tried at first in steps of COARSE */

typedef struct {
    const qk_value_range *r;
    const qk_range_choice *choice;
    double lo, hi; /* the ends before the factors */
    int best[2];   /* the factor of each */
    double least;
} search;

static range range_at(const search *s, int low, int high) {
    return within(s->r, s->lo * exp2(-low / 16.0), s->hi * exp2(-high / 16.0));
}

static bool try_factors(search *s, int low, int high) {
    if (low < 0 || high < 0 || low > LADDER || high > LADDER) return false;
    const double error = mean_error(s->r, range_at(s, low, high), s->choice, true);
    if (!(error < s->least)) return false; /* of equals, the one that clips less was there before */
    s->least = error;
    s->best[0] = low;
    s->best[1] = high;
    return true;
}

/* Both ends by one factor, then each by its own: up or down the ladder as long as that helps. */
static range least_squares(const qk_value_range *r, const qk_range_choice *c) {
    const double largest = fmax(-(double)r->lo, r->hi);
    search s = {.r = r, .choice = c, .lo = fmin(r->lo, 0), .hi = fmax(r->hi, 0), .least = INFINITY};
    if (c->grid.symmetric) s.lo = -largest, s.hi = largest;
    const bool together = c->grid.symmetric || s.lo == 0 || s.hi == 0;
    for (int i = 0; i <= LADDER; i += COARSE) try_factors(&s, i, i);
    static const int moves[][2] = {{-1, -1}, {1, 1}, {-1, 0}, {0, -1}, {1, 0}, {0, 1}};
    for (int by = COARSE; by > 0; by = by > 1 ? 1 : 0)
        for (bool better = true; better;) {
            better = false;
            for (int m = 0; m < (together ? 2 : 6); m++)
                better |= try_factors(&s, s.best[0] + by * moves[m][0], s.best[1] + by * moves[m][1]);
        }
    return range_at(&s, s.best[0], s.best[1]);
}

/* ---- entropy --------------------------------------------------------------------------------- */

/* Zero is exact whatever the range, and often half of the data: its bin counts as much as the next one at most. */
static double weight_in(const qk_value_range *r, int bin) {
    const uint64_t count = qk_value_range_in(r, bin);
    if (bin != 0) return (double)count;
    const uint64_t next = qk_value_range_in(r, 1);
    return (double)(count < next ? count : next);
}

static const double SMOOTHED = 1e-4; /* values in a bin that levels leave empty, as in onnxruntime's smoothing */

/* KL divergence of the data, clipped to `half` bins on each side, from what equal levels make of the part inside. */
static double divergence(const qk_value_range *r, extent e, int half, int levels, double total) {
    const int per_level = 2 * half / levels;
    double below = 0, inside = 0, smoothed = 0, sum = 0;
    for (int bin = e.first; bin < -half; bin++) below += weight_in(r, bin);
    for (int bin = -half; bin < half; bin++) inside += weight_in(r, bin);
    if (inside == 0) return INFINITY;
    const double above = total - below - inside;
    for (int level = 0; level < levels; level++) {
        const int first = -half + level * per_level;
        double mass = 0, filled = 0; /* of the level, and how many of its bins hold something */
        for (int pass = 0; pass < 2; pass++)
            for (int bin = first; bin < first + per_level; bin++) {
                const double here = weight_in(r, bin);
                const double clipped = here + (bin == -half ? below : 0) + (bin == half - 1 ? above : 0);
                if (clipped == 0) continue;
                if (pass == 0) {
                    mass += here;
                    filled++;
                } else {
                    const double even = mass > 0 ? mass / filled : SMOOTHED;
                    smoothed += mass > 0 ? 0 : SMOOTHED;
                    sum += clipped / total * log(clipped / total / even);
                }
            }
    }
    return sum + log(inside + smoothed);
}

static range entropy(const qk_value_range *r, int levels) {
    const extent e = extent_of(r);
    const int largest = -e.first > e.end ? -e.first : e.end;
    double total = 0, least = INFINITY;
    int best = r->bins;
    for (int bin = e.first; bin < e.end; bin++) total += weight_in(r, bin);
    for (int half = levels / 2; total > 0 && half <= r->bins; half += levels / 2) {
        const double d = divergence(r, e, half, levels, total);
        if (d <= least) {
            least = d;
            best = half;
        }
        if (half >= largest) break;
    }
    return within(r, -best * e.width, best * e.width);
}

void qk_value_range_choose(const qk_value_range *r, const qk_range_choice *c, float *lo, float *hi) {
    range found = {qk_value_range_min(r), qk_value_range_max(r)};
    const float largest = fmaxf(-found.lo, found.hi);
    switch (largest > 0 ? c->method : QK_RANGE_MIN_MAX) {
    case QK_RANGE_MIN_MAX: break;
    case QK_RANGE_PERCENTILE: found = percentile(r, c, c->percentiles[0]); break;
    case QK_RANGE_MIN_MSE: found = least_squares(r, c); break;
    case QK_RANGE_ENTROPY: found = entropy(r, c->levels); break;
    case QK_RANGE_DISTRIBUTION: found = (range){-largest, largest}; break;
    case QK_RANGE_LAYERWISE_PERCENTILE: found = layerwise_percentile(r, c); break;
    }
    *lo = found.lo;
    *hi = found.hi;
}
