#include "solvers/coordinate_descent.h"

#include "base/blas.h"

/* residual += moved G for the inputs begin .. end - 1, in the lines from .. to - 1. */
static void update_lines(float *residual, const float *moved, const float *gram, int64_t K, int64_t begin, int64_t end,
                         int64_t from, int64_t to) {
    if (from >= to) return;
    qk_sgemm(residual + from * QK_LANES, gram + from * K + begin, moved + begin * QK_LANES,
             (qk_gemm_shape){.m = to - from,
                             .n = QK_LANES,
                             .k = end - begin,
                             .lda = K,
                             .ldb = QK_LANES,
                             .ldc = QK_LANES,
                             .accumulate = true});
}

/* Brings the residual outside of the block up to date: one product when many inputs moved, else one after the other. */
static void update_outside(float *residual, const float *moved, const float *gram, int64_t K, int64_t begin,
                           int64_t end, int64_t moves) {
    enum { PRODUCT_IS_FASTER = 8 }; /* times, per input */
    if (moves * PRODUCT_IS_FASTER > end - begin) {
        update_lines(residual, moved, gram, K, begin, end, 0, begin);
        update_lines(residual, moved, gram, K, begin, end, end, K);
        return;
    }
    const qk_kernels *kernels = qk_kernels_get();
    for (int64_t j = begin; j < end; j++) {
        const float *step = moved + j * QK_LANES;
        bool any = false;
        for (int i = 0; i < QK_LANES; i++) any |= step[i] != 0;
        if (!any) continue;
        kernels->spread(residual, step, gram + j * K, (size_t)begin); /* G is symmetric */
        kernels->spread(residual + end * QK_LANES, step, gram + j * K + end, (size_t)(K - end));
    }
}

void qk_coordinate_descent(qk_integer_rows *rows, const float *gram, float *residual, int max_sweeps, float *scratch) {
    const int64_t K = rows->inputs;
    for (int sweep = 0; sweep < max_sweeps; sweep++) {
        bool any = false;
        for (int64_t begin = 0; begin < K; begin += QK_COLUMN_BLOCK) {
            const int64_t end = begin + QK_COLUMN_BLOCK < K ? begin + QK_COLUMN_BLOCK : K, at = begin * QK_LANES;
            const qk_lanes lanes = {rows->scale,  rows->zp,          rows->lo + at, rows->hi + at,
                                    rows->q + at, rows->scale_block, begin};
            const int64_t moves = qk_kernels_get()->descend(&lanes, gram + begin * K + begin, K, residual + at,
                                                            scratch + at, (size_t)(end - begin));
            if (moves == 0) continue;
            any = true;
            update_outside(residual, scratch, gram, K, begin, end, moves);
        }
        if (!any) break;
    }
}
