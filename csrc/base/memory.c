#include "base/memory.h"

#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 33)
#define QK_CAN_RETURN
#include <malloc.h>
#endif
#endif

void qk_return_memory(size_t least) {
#ifdef QK_CAN_RETURN
    if (mallinfo2().fordblks >= least) malloc_trim(0);
#else
    (void)least;
#endif
}
