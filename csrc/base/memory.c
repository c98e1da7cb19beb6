#include "base/memory.h"

#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 33)
#define QK_CAN_RETURN
#include <malloc.h>
#include <stdio.h>
#endif
#endif

#ifdef QK_CAN_RETURN

qk_resident qk_resident_memory(void) {
    qk_resident found = {0, 0};
    FILE *file = fopen("/proc/self/status", "r"); /* getrusage's peak is also that of the process before an exec */
    if (!file) return found;
    char line[256];
    size_t kib;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "VmRSS: %zu", &kib) == 1) found.now = kib << 10;
        if (sscanf(line, "VmHWM: %zu", &kib) == 1) found.peak = kib << 10;
    }
    fclose(file);
    return found;
}

size_t qk_unused_memory(void) {
    const size_t resident = qk_resident_memory().now; /* less what trimming gave back, unlike mallinfo's free bytes */
    const struct mallinfo2 heap = mallinfo2();
    const size_t used = heap.uordblks + heap.hblkhd;
    return resident > used ? resident - used : 0;
}

void qk_return_memory(void) { malloc_trim(0); }

#else

qk_resident qk_resident_memory(void) { return (qk_resident){0, 0}; }
size_t qk_unused_memory(void) { return 0; }
void qk_return_memory(void) {}

#endif
