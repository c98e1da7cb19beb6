/* OpenCL 1.2 as far as it is used here: what its specification fixes of types, constants and functions, so that nothing
 * of it is needed to build. The library, an ICD loader, is looked for at run time. */
#ifndef QK_OPENCL_H
#define QK_OPENCL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cl_platform *cl_platform_id;
typedef struct cl_device *cl_device_id;
typedef struct cl_context_ *cl_context;
typedef struct cl_queue *cl_command_queue;
typedef struct cl_memory *cl_mem;
typedef struct cl_program_ *cl_program;
typedef struct cl_kernel_ *cl_kernel;
typedef struct cl_event_ *cl_event;

enum {
    CL_SUCCESS = 0,
    CL_DEVICE_NOT_FOUND = -1,
    CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
    CL_OUT_OF_RESOURCES = -5,
    CL_OUT_OF_HOST_MEMORY = -6,
    CL_BUILD_PROGRAM_FAILURE = -11,
    CL_INVALID_BUFFER_SIZE = -61,
    CL_TRUE = 1,
    CL_PLATFORM_NAME = 0x0902,
    CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
    CL_DEVICE_NAME = 0x102B,
    CL_DRIVER_VERSION = 0x102D,
    CL_DEVICE_EXTENSIONS = 0x1030,
    CL_CONTEXT_PLATFORM = 0x1084,
    CL_PROGRAM_BUILD_LOG = 0x1183
};
#define CL_DEVICE_TYPE_GPU UINT64_C(4)
#define CL_DEVICE_TYPE_ALL UINT64_C(0xFFFFFFFF)
#define CL_MEM_READ_WRITE UINT64_C(1)

/* The functions that are used: result, name without "cl", arguments. */
#define QK_OPENCL_FUNCTIONS(X)                                                                                         \
    X(int32_t, GetPlatformIDs, (uint32_t, cl_platform_id *, uint32_t *))                                               \
    X(int32_t, GetPlatformInfo, (cl_platform_id, uint32_t, size_t, void *, size_t *))                                  \
    X(int32_t, GetDeviceIDs, (cl_platform_id, uint64_t, uint32_t, cl_device_id *, uint32_t *))                         \
    X(int32_t, GetDeviceInfo, (cl_device_id, uint32_t, size_t, void *, size_t *))                                      \
    X(cl_context, CreateContext,                                                                                       \
      (const intptr_t *, uint32_t, const cl_device_id *, void (*)(const char *, const void *, size_t, void *), void *, \
       int32_t *))                                                                                                     \
    X(int32_t, ReleaseContext, (cl_context))                                                                           \
    X(cl_command_queue, CreateCommandQueue, (cl_context, cl_device_id, uint64_t, int32_t *))                           \
    X(int32_t, ReleaseCommandQueue, (cl_command_queue))                                                                \
    X(cl_program, CreateProgramWithSource, (cl_context, uint32_t, const char **, const size_t *, int32_t *))           \
    X(int32_t, BuildProgram,                                                                                           \
      (cl_program, uint32_t, const cl_device_id *, const char *, void (*)(cl_program, void *), void *))                \
    X(int32_t, GetProgramBuildInfo, (cl_program, cl_device_id, uint32_t, size_t, void *, size_t *))                    \
    X(int32_t, ReleaseProgram, (cl_program))                                                                           \
    X(cl_kernel, CreateKernel, (cl_program, const char *, int32_t *))                                                  \
    X(int32_t, ReleaseKernel, (cl_kernel))                                                                             \
    X(int32_t, SetKernelArg, (cl_kernel, uint32_t, size_t, const void *))                                              \
    X(cl_mem, CreateBuffer, (cl_context, uint64_t, size_t, void *, int32_t *))                                         \
    X(int32_t, ReleaseMemObject, (cl_mem))                                                                             \
    X(int32_t, EnqueueWriteBuffer,                                                                                     \
      (cl_command_queue, cl_mem, uint32_t, size_t, size_t, const void *, uint32_t, const cl_event *, cl_event *))      \
    X(int32_t, EnqueueReadBuffer,                                                                                      \
      (cl_command_queue, cl_mem, uint32_t, size_t, size_t, void *, uint32_t, const cl_event *, cl_event *))            \
    X(int32_t, EnqueueCopyBuffer,                                                                                      \
      (cl_command_queue, cl_mem, cl_mem, size_t, size_t, size_t, uint32_t, const cl_event *, cl_event *))              \
    X(int32_t, EnqueueFillBuffer,                                                                                      \
      (cl_command_queue, cl_mem, const void *, size_t, size_t, size_t, uint32_t, const cl_event *, cl_event *))        \
    X(int32_t, EnqueueNDRangeKernel,                                                                                   \
      (cl_command_queue, cl_kernel, uint32_t, const size_t *, const size_t *, const size_t *, uint32_t,                \
       const cl_event *, cl_event *))                                                                                  \
    X(int32_t, Finish, (cl_command_queue))

typedef struct {
#define QK_POINTER(result, name, arguments) result(*name) arguments;
    QK_OPENCL_FUNCTIONS(QK_POINTER)
#undef QK_POINTER
} qk_opencl;

/* Loads the library. false: it is not there, and `why` (size) says what is wrong. It is never unloaded, as drivers
 * leave threads behind. */
bool qk_opencl_load(qk_opencl *cl, char *why, size_t size);
/* The name of an error, "CL_OUT_OF_RESOURCES" or its number. text (size): where a number is written. */
const char *qk_opencl_error(int32_t code, char *text, size_t size);

#endif
