/* What the tests of devices share: a device, of any kind, where OpenCL finds one; else they say why they do nothing. */
#ifndef QK_DEVICE_CASES_H
#define QK_DEVICE_CASES_H

#include "device/device.h"
#include "qk_test.h"

/* What drivers keep until the process ends is theirs: they and what they load is left out of the search for leaks. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libOpenCL\nleak:libpocl\nleak:libLLVM\nleak:libclang\nleak:libhwloc\nleak:<unknown module>\n";
}

/* The first device of the first platform; NULL: there is none, and the reason was printed. */
static inline qk_device *device_new(int64_t most_bytes) {
    const qk_device_choice any = {.any_kind = true, .most_bytes = most_bytes};
    char why[QK_DEVICE_MESSAGE];
    qk_device *device;
    const qk_status status = qk_device_open(&device, &any, why);
    if (!device) {
        CHECK(status == QK_E_DEVICE);
        CHECK(strncmp(why, "there is no ", 12) == 0); /* what is there must work */
        printf("skipped: %s\n", why);
    }
    return device;
}

static inline bool says(qk_device *d, const char *part) {
    char message[QK_DEVICE_MESSAGE];
    qk_device_message(d, message);
    return strstr(message, part) != NULL;
}

#endif
