/* What GPTQ needs of H = X'X + lam I where rows are few, without anything of size K x K.
 *
 * Inputs are rounded from the last to the first, QK_COLUMN_BLOCK at a time. Let F be the inputs up to the end of a
 * block B, and M = lam I + X_F X_F', rows x rows. By Woodbury's identity the inverse of H_FF is (I - X_F' M^-1 X_F) /
 * lam. With V = M^-1 X_B and S = I - X_B' V there are
 *
 *   L L' = S^-1    L: the Cholesky factor of H at B, but for the factor sqrt(lam)
 *   T = V L        an error d at B moves the minimum of the inputs before it by -d L T' X
 *   M^-1 += T T'   for F without B
 *
 * Derived from GPTQ, arXiv 2210.17323; the products are those of a blocked Cholesky factorisation. */
#ifndef QK_ROW_FACTOR_H
#define QK_ROW_FACTOR_H

#include "least_squares/row_set.h"

typedef struct {
    double damping;
    bool *sound;  /* (groups): M had a factor, and every S */
    double *root; /* (groups, width, width): the Cholesky factor of M with all inputs */
    float *l, *t; /* (groups * K, QK_COLUMN_BLOCK): L; (groups * K, width): T', of each block */
} qk_row_factor;

/* lam (groups). gram (groups, width, width): X X', from qk_row_gram. QK_E_NOMEM, QK_E_CANCELLED: destroy it. */
qk_status qk_row_factor_new(qk_row_factor *f, const qk_row_set *s, const double *gram, const double *lam, qk_run *run);
void qk_row_factor_destroy(qk_row_factor *f);
/* gram (groups, width, width) = X X', the lower triangle. QK_E_NOMEM, QK_E_CANCELLED. */
qk_status qk_row_gram(const qk_row_set *s, double *gram, qk_run *run);
/* Bytes of one. */
double qk_row_factor_bytes(const qk_row_set *s);

#endif
