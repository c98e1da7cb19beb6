/* Which OpenCL device is meant. */
#ifndef QK_DEVICE_CHOICE_H
#define QK_DEVICE_CHOICE_H

#include "device/opencl.h"
#include "qk.h"

typedef struct {
    cl_platform_id platform;
    cl_device_id device;
} qk_place;

enum { QK_DEVICE_NAME = 512 };
/* name (QK_DEVICE_NAME): what the device is called; false: why (QK_DEVICE_MESSAGE) it cannot be used. */
bool qk_choose_device(const qk_opencl *cl, const qk_device_choice *choice, qk_place *place, char *name, char *why);

#endif
