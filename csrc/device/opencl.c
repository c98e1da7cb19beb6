#include "device/opencl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

bool qk_opencl_load(qk_opencl *cl, char *why, size_t size) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, size, "there is no OpenCL: %s. Install the GPU's driver and an ICD loader (ocl-icd-libopencl1)",
                 dlerror());
        return false;
    }
#define QK_LOAD(result, name, arguments)                                          \
    {                                                                             \
        void *found = dlsym(library, "cl" #name);                                 \
        if (!found) {                                                             \
            snprintf(why, size, "libOpenCL.so.1 is too old: it has no cl" #name); \
            return false;                                                         \
        }                                                                         \
        memcpy(&cl->name, &found, sizeof found);                                  \
    }
    QK_OPENCL_FUNCTIONS(QK_LOAD)
#undef QK_LOAD
    return true;
}

const char *qk_opencl_error(int32_t code, char *text, size_t size) {
    switch (code) {
    case CL_DEVICE_NOT_FOUND: return "CL_DEVICE_NOT_FOUND";
    case CL_MEM_OBJECT_ALLOCATION_FAILURE: return "CL_MEM_OBJECT_ALLOCATION_FAILURE";
    case CL_OUT_OF_RESOURCES: return "CL_OUT_OF_RESOURCES";
    case CL_OUT_OF_HOST_MEMORY: return "CL_OUT_OF_HOST_MEMORY";
    case CL_BUILD_PROGRAM_FAILURE: return "CL_BUILD_PROGRAM_FAILURE";
    case CL_INVALID_BUFFER_SIZE: return "CL_INVALID_BUFFER_SIZE";
    default: snprintf(text, size, "OpenCL error %d", (int)code); return text;
    }
}
