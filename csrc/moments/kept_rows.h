/* Rows that a layer keeps as they are, where they are fewer than its inputs: panels grow then, nothing is added, and
 * nothing of size K x K is made. What happens when there are more. */
#ifndef QK_KEPT_ROWS_H
#define QK_KEPT_ROWS_H

#include "moments/layer.h"

/* Whether the layer should keep its rows where samples have so many positions, and room for how many of each set. */
bool qk_few_rows(const qk_layer *layer, int64_t positions, int64_t capacity[2]);
/* Moves those of n positions that are to be kept to the front, as many as there is room for: *taken. Returns how many
 * positions were looked at. */
int64_t qk_take_rows(qk_sums *s, int64_t *positions, int64_t n, int64_t room, int64_t *taken);
/* Room for one more row in a panel of kept rows that is full: it grows, or loses every other row, or moments take the
 * place of all kept rows. */
qk_status qk_make_room(qk_layer *layer, qk_sums *s, qk_pool *pool);
/* The kept rows of one input, groups * K of them: to (used). */
void qk_kept_line(const qk_layer *layer, const qk_sums *s, int64_t line, float *to);
/* mean_x (groups, K): of the kept rows of a set. QK_E_NOMEM. */
qk_status qk_kept_mean(const qk_layer *layer, qk_set set, double *mean_x);
/* Kept bytes become float32. */
qk_status qk_kept_rows_as_floats(qk_layer *layer);
/* Adds the rows of another layer; both keep theirs. */
qk_status qk_kept_rows_join(qk_layer *layer, const qk_layer *other);

#endif
