#include "solvers/closest_point.h"

#include <math.h>

typedef struct {
    const qk_integer_rows *rows;
    int lane;
    const double *target, *l;                  /* (K), (K,K) */
    double q[QK_FEW_INPUTS], d[QK_FEW_INPUTS]; /* of the present branch: integers, w - target */
    double best;                               /* the objective of rows->q */
    int nodes;                                 /* left */
} search;

/* Chooses inputs j, j - 1, ... 0; `cost` is the part of the objective that the later ones make. */
static void choose(search *s, int64_t j, double cost) {
    const qk_integer_rows *r = s->rows;
    const int64_t K = r->inputs, at = j * QK_LANES + s->lane;
    if (j < 0) {
        s->best = cost;
        for (int64_t k = 0; k < K; k++) r->q[k * QK_LANES + s->lane] = (float)s->q[k];
        return;
    }
    const int64_t scales = (r->scale_block > 0 ? j / r->scale_block * QK_LANES : 0) + s->lane;
    const double scale = r->scale[scales], zp = r->zp[scales], lo = r->lo[at], hi = r->hi[at];
    const double diagonal = s->l[j * K + j];
    double carried = 0;
    for (int64_t i = j + 1; i < K; i++) carried += s->l[i * K + j] * s->d[i];
    const double centre = (s->target[j] - carried / diagonal) / scale + zp; /* makes line j zero */
    double q = fmin(fmax(rint(centre), lo), hi), below = q - 1, above = q + 1;
    while (q >= lo && q <= hi && s->nodes-- > 0) { /* the nearest first */
        const double line = diagonal * scale * (q - centre);
        if (!(cost + line * line < s->best)) return;
        s->q[j] = q;
        s->d[j] = scale * (q - zp) - s->target[j];
        choose(s, j - 1, cost + line * line);
        q = below < lo || (above <= hi && above - centre < centre - below) ? above++ : below--;
    }
}

void qk_closest_point(const qk_integer_rows *rows, int lane, const double *target, const double *l) {
    search s = {.rows = rows, .lane = lane, .target = target, .l = l, .best = INFINITY, .nodes = QK_MOST_NODES};
    choose(&s, rows->inputs - 1, 0);
}
