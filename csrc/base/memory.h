/* Zeroed arrays, freed memory and the early return of the core. */
#ifndef QK_MEMORY_H
#define QK_MEMORY_H

#include <stdint.h>
#include <stdlib.h>

#include "qk.h"

/* n zeroed elements of the given size; NULL when out of memory or n < 0. Never NULL for n == 0. */
static inline void *qk_calloc(int64_t n, size_t size) { return n < 0 ? NULL : calloc(n > 0 ? (size_t)n : 1, size); }
#define QK_NEW(type, n) ((type *)qk_calloc((int64_t)(n), sizeof(type)))

/* Give memory that was freed back to the system, if the C library holds at least so many bytes of it. */
void qk_return_memory(size_t least);

#define QK_TRY(expression)                    \
    do {                                      \
        qk_status status_ = (expression);     \
        if (status_ != QK_OK) return status_; \
    } while (0)

#endif
