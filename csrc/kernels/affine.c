#include <float.h>
#include <math.h>

#include "qk.h"

/* The least scale of its type that is no less. */
static double round_up(double scale, qk_scale_type type) {
    const int bits = type == QK_SCALE_POWER_OF_2 ? 1 : 15; /* of the mantissa */
    int exponent;
    const double mantissa = frexp(scale, &exponent);
    return fmin(ldexp(ceil(ldexp(mantissa, bits)), exponent - bits), 0x1p127);
}

/* As onnxruntime.quantization does it: the scale in float64, stored as float32. */
qk_affine qk_affine_from_range(double rmin, double rmax, qk_grid grid) {
    rmin = fmin(rmin, 0);
    rmax = fmax(rmax, 0);
    if (grid.symmetric) {
        rmax = fmax(-rmin, rmax);
        rmin = -rmax;
    }
    double scale = (rmax - rmin) / ((double)grid.qmax - grid.qmin);
    if (!(scale >= FLT_MIN)) return (qk_affine){1.0f, 0};
    if (grid.scale_type != QK_SCALE_FLOAT32) scale = round_up(scale, grid.scale_type);
    const double zero_point = grid.symmetric ? ((double)grid.qmin + grid.qmax) / 2 : grid.qmin - rmin / scale;
    return (qk_affine){(float)fmin(scale, FLT_MAX), (int32_t)fmin(fmax(rint(zero_point), INT32_MIN), INT32_MAX)};
}
