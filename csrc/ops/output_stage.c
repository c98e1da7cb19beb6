#include "ops/output_stage.h"

#include <math.h>

#include "kernels/kernels.h"

enum { BLOCK = 512 };

bool qk_stage_is_plain(const qk_output_stage *s) { return s->activation.kind == QK_NO_ACTIVATION && !s->quantized; }

double qk_stage_line(const qk_output_stage *s, int64_t row, float bias, float *z, float *target, size_t n,
                     double *slope_power) {
    const qk_kernels *k = qk_kernels_get();
    const qk_activation none = {.kind = QK_NO_ACTIVATION};
    qk_activation f = s->activation;
    if (s->slopes) f.a = s->slopes[row];
    float value[BLOCK], slope[BLOCK], wanted[BLOCK];
    double squares = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        const size_t count = n - i < BLOCK ? n - i : BLOCK;
        k->activate(wanted, slope, target + i, 0, &f, count);
        for (size_t j = 0; j < count; j++) target[i + j] = wanted[j];
        k->activate(value, slope, z + i, bias, s->folded ? &none : &f, count);
        if (s->quantized) k->fake_quant_through(value, slope, count, s->affine, s->grid);
        squares += k->sloped_error(z + i, value, wanted, slope, count);
        *slope_power += k->sum_squares(slope, count);
    }
    return squares;
}

qk_softmax_shape qk_softmax_shape_of(const qk_output_stage *s, const qk_geometry *g, const qk_tensor *y) {
    const bool by_rows = g->spatial == 0; /* y (1, positions..., rows), else (1, rows, positions...) */
    const int channel = by_rows ? y->ndim - 1 : 1;
    const int64_t rows = y->dims[channel];
    qk_softmax_shape shape = {.outer = rows, .length = y->dims[s->axis], .inner = 1};
    if (s->axis == channel) shape.outer = 1;
    for (int i = 1; i < y->ndim; i++) {
        if (i == channel || i == s->axis) continue;
        *(i < s->axis && s->axis != channel ? &shape.outer : &shape.inner) *= y->dims[i];
    }
    return shape;
}

/* In place, n values, `inner` apart. */
static void softmax(float *x, int64_t n, int64_t inner) {
    float largest = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++) largest = fmaxf(largest, x[i * inner]);
    for (int64_t i = 0; i < n; i++) sum += x[i * inner] = expf(x[i * inner] - largest);
    for (int64_t i = 0; i < n; i++) x[i * inner] /= sum;
}

void qk_stage_softmax(const qk_output_stage *s, qk_softmax_shape shape, float *z, float *target, float *error,
                      float *slope_power) {
    const qk_kernels *k = qk_kernels_get();
    const int64_t n = shape.length, inner = shape.inner;
    for (int64_t line = 0; line < shape.outer * inner; line++) {
        const int64_t at = line / inner * n * inner + line % inner;
        float *p = z + at, *t = target + at, *e = error + at, *power = slope_power + at;
        softmax(t, n, inner);
        softmax(p, n, inner);
        double squares = 0, mean = 0; /* where a share is about 1 what is left of it is tiny */
        for (int64_t i = 0; i < n; i++) {
            const double share = p[i * inner];
            float value = p[i * inner], inside = 1;
            if (s->quantized) k->fake_quant_through(&value, &inside, 1, s->affine, s->grid);
            e[i * inner] = value - t[i * inner];
            power[i * inner] = inside; /* for now */
            mean += inside * share * e[i * inner];
            squares += inside * (share * share);
        }
        for (int64_t i = 0; i < n; i++) { /* d value_j / d z_i = share_j ([i = j] - share_i), 0 where j is outside */
            const double share = p[i * inner], inside = power[i * inner];
            const double others = squares - inside * (share * share);
            power[i * inner] = (float)(share * share * (inside * (1 - share) * (1 - share) + others));
            p[i * inner] = (float)(share * (inside * e[i * inner] - mean));
        }
    }
}
