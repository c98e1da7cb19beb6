/* Which output positions of a sample become rows, and which of them are held out. */
#ifndef QK_ROW_CHOICE_H
#define QK_ROW_CHOICE_H

#include "qk.h"

/* Rows are drawn in runs of neighbouring positions: a run costs one cache line, as one position would. */
enum { QK_RUN = 16 };

/* The most of a sample's `positions` that are drawn; the capacity that qk_choose_rows needs. */
int64_t qk_rows_per_sample(const qk_row_choice *choice, int64_t positions);

/* About how many rows of each set the planned samples give, by qk_set, if all have so many positions. */
void qk_planned_rows(const qk_row_choice *choice, int64_t positions, int64_t planned[2]);

/* Draws the rows of one sample: first the fitted ones, then the held-out ones, each ascending. Depends on the seed
 * and the sample's index alone, not on batches or threads. Returns how many were drawn; *fitted of them are fitted.
 * order: scratch of ceil(positions / QK_RUN). */
int64_t qk_choose_rows(const qk_row_choice *choice, int64_t sample, int64_t positions, int64_t *rows, int64_t *order,
                       int64_t *fitted);

#endif
