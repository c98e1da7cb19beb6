#include <float.h>
#include <math.h>

#include "qk.h"

/* As onnxruntime.quantization does it: the scale in float64, stored as float32. */
qk_affine qk_affine_from_range(double rmin, double rmax, qk_grid grid) {
    rmin = fmin(rmin, 0);
    rmax = fmax(rmax, 0);
    if (grid.symmetric) {
        rmax = fmax(-rmin, rmax);
        rmin = -rmax;
    }
    const double scale = (rmax - rmin) / ((double)grid.qmax - grid.qmin);
    if (scale < FLT_MIN) return (qk_affine){1.0f, 0};
    const double zero_point = grid.symmetric ? (double)(grid.qmin + grid.qmax) / 2 : grid.qmin - rmin / scale;
    return (qk_affine){(float)scale, (int32_t)rint(zero_point)};
}
