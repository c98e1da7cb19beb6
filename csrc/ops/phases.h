/* The phases of a ConvTranspose with strides. Outputs that are a stride apart see the same taps, and zeros in all
 * others: they are the rows of one phase, and with its taps alone a Conv without strides. Every tap belongs to one
 * phase. Any other layer is one phase with all taps. */
#ifndef QK_PHASES_H
#define QK_PHASES_H

#include "ops/extent.h"

typedef struct {
    int64_t count;
    int64_t tap_phases;              /* those that have taps; one more, the last, where some outputs see none */
    int64_t classes[QK_MAX_SPATIAL]; /* along an axis the taps k with the same k % classes see the same outputs */
} qk_phases;

qk_phases qk_phases_of(const qk_geometry *g);
/* How many taps phase `phase` has; which (taps of the kernel), ascending, may be NULL. */
int64_t qk_phase_taps(const qk_phases *p, const qk_geometry *g, int64_t phase, int64_t *which);

/* Output positions by phase, those of one phase in the order they came in; the memory is the caller's. */
typedef struct {
    int64_t *sorted;  /* (n) */
    int64_t *ends;    /* (count): behind the last of each phase */
    int64_t *scratch; /* (n) */
} qk_phase_order;
void qk_sort_by_phase(const qk_phases *p, const qk_geometry *g, const qk_extent *e, const int64_t *positions, int64_t n,
                      const qk_phase_order *order);

#endif
