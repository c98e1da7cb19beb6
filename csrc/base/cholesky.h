/* Cholesky factors of large matrices, in tiles that the threads of a pool share. Inside of qk_blas_enter. */
#ifndef QK_CHOLESKY_H
#define QK_CHOLESKY_H

#include "base/run.h"

/* The lower triangle of a (n,n) becomes its factor L, a = L L'; what is right of the diagonal becomes 0. *positive:
 * whether each pivot is more than `least` times the number that stood there, so that rounding has not eaten it; else a
 * holds nothing. QK_E_NOMEM, QK_E_CANCELLED. */
qk_status qk_cholesky_tiled_f32(float *a, int64_t n, double least, qk_run *run, bool *positive);
qk_status qk_cholesky_tiled_f64(double *a, int64_t n, double least, qk_run *run, bool *positive);

/* Factors as the tiled ones do, without a pool, inside a task. pivots (n): scratch. */
bool qk_cholesky_alone_f32(float *a, int64_t n, double least, float *pivots);

#endif
