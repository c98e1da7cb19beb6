#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "finetune/integer_rows.h"
#include "kernels/kernels.h"

/* One pass over a block of columns of one row. residual: w G - c of these columns, kept up to date within the block;
 * moved: the change of w. Returns how many weights moved. */
static int64_t descend_columns(qk_integer_rows *rows, int64_t i, int64_t begin, int64_t end, const double *gram,
                               const double *residual, double *moved) {
    const qk_kernels *kernels = qk_kernels_get();
    const int64_t K = rows->inputs, n = end - begin;
    const double scale = rows->scale[i];
    double local[QK_COLUMN_BLOCK];
    int64_t count = 0;
    memcpy(local, residual + i * K + begin, (size_t)n * sizeof *local);
    for (int64_t j = begin; j < end; j++) {
        const int64_t at = i * K + j;
        const double curvature = gram[j * K + j];
        moved[at] = 0;
        if (!(curvature > 0)) continue; /* an input that is always zero: the weight stays where it is */
        double q = rint(rows->q[at] - local[j - begin] / (scale * curvature));
        q = fmin(fmax(q, rows->lo[at]), rows->hi[at]);
        const double step = scale * (q - rows->q[at]);
        if (step == 0) continue;
        rows->q[at] = (int32_t)q;
        rows->w[at] = scale * (q - rows->zp[i]);
        moved[at] = step;
        count++;
        kernels->axpy(local, step, gram + j * K + begin, (size_t)n);
    }
    return count;
}

/* residual += moved G for a block of columns: one product when much has moved, a line at a time when little has. */
static void update_residual(double *residual, const qk_integer_rows *rows, const double *moved, const double *gram,
                            int64_t begin, int64_t end, int64_t moves) {
    enum { PRODUCT_IS_FASTER = 16 }; /* times, per operation */
    const int64_t K = rows->inputs, m = rows->count;
    if (moves * PRODUCT_IS_FASTER > m * (end - begin)) {
        qk_dgemm(residual, moved + begin, gram + begin * K,
                 (qk_gemm_shape){.m = m, .n = K, .k = end - begin, .lda = K, .ldb = K, .ldc = K, .accumulate = true});
        return;
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = begin; j < end; j++)
            if (moved[i * K + j] != 0)
                qk_kernels_get()->axpy(residual + i * K, moved[i * K + j], gram + j * K, (size_t)K);
}

void qk_coordinate_descent(qk_integer_rows *rows, const double *gram, const double *cross, int max_sweeps,
                           double *scratch) {
    const int64_t K = rows->inputs, m = rows->count;
    double *residual = scratch, *moved = scratch + m * K;
    for (int64_t i = 0; i < m * K; i++) residual[i] = -cross[i];
    qk_dgemm(residual, rows->w, gram,
             (qk_gemm_shape){.m = m, .n = K, .k = K, .lda = K, .ldb = K, .ldc = K, .accumulate = true});
    for (int sweep = 0; sweep < max_sweeps; sweep++) {
        bool any = false;
        for (int64_t begin = 0; begin < K; begin += QK_COLUMN_BLOCK) {
            const int64_t end = begin + QK_COLUMN_BLOCK < K ? begin + QK_COLUMN_BLOCK : K;
            int64_t moves = 0;
            for (int64_t i = 0; i < m; i++) moves += descend_columns(rows, i, begin, end, gram, residual, moved);
            if (moves == 0) continue;
            any = true;
            update_residual(residual, rows, moved, gram, begin, end, moves);
        }
        if (!any) break;
    }
}
