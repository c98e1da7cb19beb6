/* Zeroed arrays, freed memory and the early return of the core. */
#ifndef QK_MEMORY_H
#define QK_MEMORY_H

#include <stdint.h>
#include <stdlib.h>

#include "base/sizes.h"
#include "qk.h"

/* n zeroed elements of the given size; NULL when out of memory or n < 0. Never NULL for n == 0. */
static inline void *qk_calloc(int64_t n, size_t size) {
    return n < 0 || n > INT64_MAX / (int64_t)size ? NULL : calloc(n > 0 ? (size_t)n : 1, size);
}
/* As many as the product of the sizes that follow the type says; NULL where that is no size. */
#define QK_NEW(type, ...) ((type *)qk_calloc(QK_PRODUCT(__VA_ARGS__), sizeof(type)))

/* Bytes of memory that the process has, and the most it has had. 0 where the system does not tell. */
typedef struct {
    size_t now, peak;
} qk_resident;
qk_resident qk_resident_memory(void);

/* Bytes of memory that the process has beside what it allocated: code, and what the C library keeps of freed memory,
 * which is what makes it grow. 0 where the system does not tell. */
size_t qk_unused_memory(void);

/* Give back to the system what the C library keeps of freed memory. */
void qk_return_memory(void);

#define QK_TRY(expression)                    \
    do {                                      \
        qk_status status_ = (expression);     \
        if (status_ != QK_OK) return status_; \
    } while (0)

#endif
