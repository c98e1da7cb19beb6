#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "finetune/integer_rows.h"
#include "kernels/kernels.h"

/* The objective in d = w - target is |L' d|^2; line j of L' d is L_jj d_j + sum_{i>j} L_ij d_i. With the later columns
 * fixed, column j is best where that line is zero. `carried` holds the sums, `d` the errors made. */
static void round_columns(qk_integer_rows *rows, int64_t i, int64_t begin, int64_t end, const double *target,
                          const double *l, double *carried, double *d) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = rows->inputs;
    const double scale = rows->scale[i], zp = rows->zp[i];
    for (int64_t j = end - 1; j >= begin; j--) {
        const int64_t at = i * K + j;
        const double *line = l + j * K;
        double q = rint((target[at] - carried[at] / line[j]) / scale) + zp;
        q = fmin(fmax(q, rows->lo[at]), rows->hi[at]);
        rows->q[at] = (int32_t)q;
        rows->w[at] = scale * (q - zp);
        d[at] = rows->w[at] - target[at];
        kernels->axpy(carried + i * K + begin, d[at], line + begin, (size_t)(j - begin));
    }
}

void qk_successive_rounding(qk_integer_rows *rows, const double *target, const double *l, double *scratch) {
    const int64_t K = rows->inputs, blocks = (K + QK_COLUMN_BLOCK - 1) / QK_COLUMN_BLOCK;
    double *carried = scratch, *d = scratch + rows->count * K;
    memset(carried, 0, (size_t)(rows->count * K) * sizeof *carried);
    for (int64_t block = blocks - 1; block >= 0; block--) {
        const int64_t begin = block * QK_COLUMN_BLOCK;
        const int64_t end = begin + QK_COLUMN_BLOCK < K ? begin + QK_COLUMN_BLOCK : K;
        for (int64_t i = 0; i < rows->count; i++) round_columns(rows, i, begin, end, target, l, carried, d);
        if (begin > 0)
            qk_dgemm(
                carried, d + begin, l + begin * K,
                (qk_gemm_shape){
                    .m = rows->count, .n = begin, .k = end - begin, .lda = K, .ldb = K, .ldc = K, .accumulate = true});
    }
}
