#include "base/cholesky.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"

enum {
    TILE = 256, /* the unit of work, whatever the number of threads */
    INNER = 64, /* columns of a diagonal tile that are factored by loops */
};

#define REAL float
#define GEMM qk_sgemm
#define TRSM qk_strsm
#define NAME(name) name##_f32
#include "base/cholesky.inc"
#undef REAL
#undef GEMM
#undef TRSM
#undef NAME
#define REAL double
#define GEMM qk_dgemm
#define TRSM qk_dtrsm
#define NAME(name) name##_f64
#include "base/cholesky.inc"

qk_status qk_cholesky_tiled_f32(float *a, int64_t n, double least, qk_run *run, bool *positive) {
    return tiled_f32(a, n, least, run, positive);
}

qk_status qk_cholesky_tiled_f64(double *a, int64_t n, double least, qk_run *run, bool *positive) {
    return tiled_f64(a, n, least, run, positive);
}

bool qk_cholesky_alone_f32(float *a, int64_t n, double least, float *pivots) {
    prepare_f32(a, n, least, pivots);
    if (!factor_tile_f32(a, n, n, pivots)) return false;
    clear_above_f32(a, n);
    return true;
}
