#include "base/memory.h"

#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 33)
#define QK_CAN_RETURN
#include <malloc.h>
#include <stdio.h>
#include <unistd.h>
#endif
#endif

#ifdef QK_CAN_RETURN

size_t qk_unused_memory(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file) return 0;
    size_t resident = 0; /* pages; those that trimming gave back are not among them, unlike in mallinfo's free bytes */
    const int fields = fscanf(file, "%*u %zu", &resident);
    fclose(file);
    if (fields != 1) return 0;
    const struct mallinfo2 heap = mallinfo2();
    const size_t all = resident * (size_t)sysconf(_SC_PAGESIZE), used = heap.uordblks + heap.hblkhd;
    return all > used ? all - used : 0;
}

void qk_return_memory(void) { malloc_trim(0); }

#else

size_t qk_unused_memory(void) { return 0; }
void qk_return_memory(void) {}

#endif
