#include "solvers/gptq.h"

#include <string.h>

#include "base/blas.h"
#include "base/sizes.h"

/* The objective in d = w - target is |L' d|^2; line j of L' d is L_jj d_j + sum_{i>j} L_ij d_i. With the later inputs
 * fixed, input j is best where that line is zero. `carried` holds the sums, `d` the errors made. */
void qk_gptq(qk_integer_rows *rows, const float *target, const float *l, float *scratch) {
    const int64_t K = rows->inputs, blocks = qk_ceil_div(K, QK_COLUMN_BLOCK);
    float *carried = scratch, *d = scratch + K * QK_LANES;
    memset(carried, 0, (size_t)(K * QK_LANES) * sizeof *carried);
    for (int64_t block = blocks - 1; block >= 0; block--) {
        const int64_t begin = block * QK_COLUMN_BLOCK, at = begin * QK_LANES;
        const int64_t end = begin + QK_COLUMN_BLOCK < K ? begin + QK_COLUMN_BLOCK : K;
        const qk_lanes lanes = {rows->scale,  rows->zp,          rows->lo + at, rows->hi + at,
                                rows->q + at, rows->scale_block, begin};
        qk_kernels_get()->round_carrying(&lanes, target + at, l + begin * K + begin, K, carried + at, d + at,
                                         (size_t)(end - begin));
        if (begin > 0) /* the lines above: carried += L[block]' d */
            qk_sgemm(carried, l + begin * K, d + at,
                     (qk_gemm_shape){.m = begin,
                                     .n = QK_LANES,
                                     .k = end - begin,
                                     .lda = K,
                                     .ldb = QK_LANES,
                                     .ldc = QK_LANES,
                                     .a_transposed = true,
                                     .accumulate = true});
    }
}
