#include "device/device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "device/choice.h"
#include "device/opencl.h"

struct qk_device {
    qk_opencl cl;
    cl_context context;
    cl_command_queue queue;
    cl_program program;
    cl_kernel kernels[QK_KERNEL_COUNT];
    size_t used, most; /* bytes of memory; 0: as many as there are */
    pthread_mutex_t mutex;
    pid_t process; /* that opened it */
    qk_status status;
    char name[QK_DEVICE_NAME], message[QK_DEVICE_MESSAGE];
};

static const char *const kernel_names[] = {
#define QK_KERNEL_NAME(name) #name,
    QK_DEVICE_KERNELS(QK_KERNEL_NAME)
#undef QK_KERNEL_NAME
};

/* The text of kernels.cl, with the header that it shares with its callers in front; made by the build. */
static const char program_text[] =
#include "kernels_cl.txt"
    ;

static bool is_short_of_memory(int32_t code) {
    return code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_RESOURCES || code == CL_OUT_OF_HOST_MEMORY ||
           code == CL_INVALID_BUFFER_SIZE;
}

void qk_device_lose(qk_device *d, const char *why) {
    d->status = QK_E_DEVICE;
    snprintf(d->message, sizeof d->message, "%s: %s", d->name, why);
}

/* Notes the first failure. `allocates`: the call needs memory on the device. */
static bool is_done(qk_device *d, const char *call, int32_t code, bool allocates) {
    char number[32], why[128];
    if (code == CL_SUCCESS || d->status != QK_OK) return code == CL_SUCCESS;
    snprintf(why, sizeof why, "%s gave %s", call, qk_opencl_error(code, number, sizeof number));
    qk_device_lose(d, why);
    if (allocates && is_short_of_memory(code)) d->status = QK_E_DEVICE_NOMEM;
    return false;
}

/* ---- opening ----------------------------------------------------------------------------------- */

static void write_build_log(qk_device *d, cl_device_id id, int32_t code) {
    char number[32], *log;
    size_t size = 0;
    const int head = snprintf(d->message, sizeof d->message, "%s: its compiler refuses the kernels (%s): ", d->name,
                              qk_opencl_error(code, number, sizeof number));
    d->status = QK_E_DEVICE;
    if (d->cl.GetProgramBuildInfo(d->program, id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) != CL_SUCCESS) return;
    if (!(log = QK_NEW(char, size + 1))) return;
    d->cl.GetProgramBuildInfo(d->program, id, CL_PROGRAM_BUILD_LOG, size, log, NULL);
    if (head > 0 && (size_t)head < sizeof d->message)
        snprintf(d->message + head, sizeof d->message - (size_t)head, "%s", log);
    free(log);
}

static void build(qk_device *d, cl_device_id id, const char *source) {
    int32_t code;
    d->program = d->cl.CreateProgramWithSource(d->context, 1, &source, NULL, &code);
    if (!is_done(d, "clCreateProgramWithSource", code, true)) return;
    code = d->cl.BuildProgram(d->program, 1, &id, "-cl-std=CL1.2", NULL, NULL);
    if (code != CL_SUCCESS) {
        write_build_log(d, id, code);
        return;
    }
    for (int i = 0; i < QK_KERNEL_COUNT; i++) {
        d->kernels[i] = d->cl.CreateKernel(d->program, kernel_names[i], &code);
        if (!is_done(d, "clCreateKernel", code, true)) return;
    }
}

static qk_status start(qk_device *d, const qk_device_choice *choice, const char *source) {
    qk_place place;
    int32_t code;
    if (!qk_opencl_load(&d->cl, d->message, sizeof d->message) ||
        !qk_choose_device(&d->cl, choice, &place, d->name, d->message))
        return QK_E_DEVICE;
    const intptr_t properties[] = {CL_CONTEXT_PLATFORM, (intptr_t)place.platform, 0};
    d->context = d->cl.CreateContext(properties, 1, &place.device, NULL, NULL, &code);
    if (!is_done(d, "clCreateContext", code, true)) return d->status;
    d->queue = d->cl.CreateCommandQueue(d->context, place.device, 0, &code);
    if (is_done(d, "clCreateCommandQueue", code, true)) build(d, place.device, source);
    return d->status;
}

qk_status qk_device_open_with(qk_device **out, const qk_device_choice *choice, const char *source, char *message) {
    qk_device *d = QK_NEW(qk_device, 1);
    *out = NULL;
    message[0] = 0;
    if (!d) return QK_E_NOMEM;
    pthread_mutex_init(&d->mutex, NULL);
    d->process = getpid();
    d->most = choice->most_bytes > 0 ? (size_t)choice->most_bytes : 0;
    const qk_status status = start(d, choice, source);
    if (status == QK_OK) {
        *out = d;
        return QK_OK;
    }
    memcpy(message, d->message, sizeof d->message);
    qk_device_close(d);
    return status;
}

qk_status qk_device_open(qk_device **device, const qk_device_choice *choice, char *message) {
    return qk_device_open_with(device, choice, program_text, message);
}

/* A child of fork() leaves to its parent what belongs to the driver. */
static void release_all(qk_device *d) {
    for (int i = 0; i < QK_KERNEL_COUNT; i++)
        if (d->kernels[i]) d->cl.ReleaseKernel(d->kernels[i]);
    if (d->program) d->cl.ReleaseProgram(d->program);
    if (d->queue) d->cl.ReleaseCommandQueue(d->queue);
    if (d->context) d->cl.ReleaseContext(d->context);
}

void qk_device_close(qk_device *d) {
    if (!d) return;
    if (getpid() == d->process) release_all(d);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}

bool qk_device_is_lost(const qk_device *d) { return d->status == QK_E_DEVICE; }
const char *qk_device_name(const qk_device *d) { return d->name; }

/* ---- working ----------------------------------------------------------------------------------- */

/* A child of fork() has neither the driver's threads nor, maybe, whoever holds the lock. */
static bool lock(qk_device *d) {
    if (getpid() == d->process) return pthread_mutex_lock(&d->mutex) == 0;
    if (d->status != QK_E_DEVICE) qk_device_lose(d, "it was opened before a fork()");
    return false;
}

static void unlock(qk_device *d) {
    if (getpid() == d->process) pthread_mutex_unlock(&d->mutex);
}

void qk_device_take(qk_device *d) {
    if (lock(d)) qk_device_forgive(d);
}

void qk_device_forgive(qk_device *d) {
    if (d->status == QK_E_DEVICE_NOMEM) d->status = QK_OK;
}

void qk_device_message(qk_device *d, char *message) {
    lock(d);
    memcpy(message, d->message, sizeof d->message);
    unlock(d);
}

qk_status qk_device_finish(qk_device *d) {
    if (d->status == QK_OK) is_done(d, "clFinish", d->cl.Finish(d->queue), true);
    return d->status;
}

qk_status qk_device_release(qk_device *d) {
    const qk_status status = qk_device_finish(d);
    unlock(d);
    return status;
}

qk_status qk_device_status(const qk_device *d) { return d->status; }

static cl_mem memory_of(const qk_buffer *b) { return (cl_mem)b->memory; }

qk_buffer qk_buffer_new(qk_device *d, int64_t n, size_t size) {
    const int64_t bytes = n > 0 ? QK_PRODUCT(n, (int64_t)size) : (int64_t)size;
    qk_buffer b = {.device = d};
    int32_t code = CL_OUT_OF_RESOURCES;
    if (d->status != QK_OK) return b;
    if (bytes > 0 && (d->most == 0 || d->used + (size_t)bytes <= d->most))
        b.memory = d->cl.CreateBuffer(d->context, CL_MEM_READ_WRITE, (size_t)bytes, NULL, &code);
    if (!is_done(d, "clCreateBuffer", code, true)) return b;
    b.bytes = (size_t)bytes;
    d->used += b.bytes;
    qk_buffer_clear(&b); /* Now it takes its memory, if there is any. */
    qk_device_finish(d);
    return b;
}

void qk_buffer_free(qk_buffer *b) {
    if (!b->memory) return;
    b->device->used -= b->bytes;
    if (getpid() == b->device->process) b->device->cl.ReleaseMemObject(memory_of(b));
    *b = (qk_buffer){0};
}

void qk_buffer_clear(const qk_buffer *b) {
    qk_device *d = b->device;
    const uint8_t zero = 0;
    if (d->status != QK_OK) return;
    is_done(d, "clEnqueueFillBuffer",
            d->cl.EnqueueFillBuffer(d->queue, memory_of(b), &zero, sizeof zero, 0, b->bytes, 0, NULL, NULL), true);
}

void qk_buffer_write(const qk_buffer *b, size_t offset, const void *from, size_t bytes) {
    qk_device *d = b->device;
    if (d->status != QK_OK || bytes == 0) return;
    is_done(d, "clEnqueueWriteBuffer",
            d->cl.EnqueueWriteBuffer(d->queue, memory_of(b), CL_TRUE, offset, bytes, from, 0, NULL, NULL), true);
}

void qk_buffer_read(const qk_buffer *b, size_t offset, void *to, size_t bytes) {
    qk_device *d = b->device;
    if (d->status != QK_OK || bytes == 0) return;
    is_done(d, "clEnqueueReadBuffer",
            d->cl.EnqueueReadBuffer(d->queue, memory_of(b), CL_TRUE, offset, bytes, to, 0, NULL, NULL), true);
}

void qk_buffer_copy(const qk_buffer *to, const qk_buffer *from) {
    qk_device *d = to->device;
    if (d->status != QK_OK) return;
    is_done(d, "clEnqueueCopyBuffer",
            d->cl.EnqueueCopyBuffer(d->queue, memory_of(from), memory_of(to), 0, 0, to->bytes, 0, NULL, NULL), true);
}

qk_work qk_work_items(int64_t n) {
    const size_t items = (size_t)(qk_ceil_div(n, QK_GROUP) * QK_GROUP);
    return (qk_work){{items, 1, 1}, {QK_GROUP, 1, 1}};
}

qk_work qk_work_lines(int64_t n) { return (qk_work){{(size_t)n * QK_GROUP, 1, 1}, {QK_GROUP, 1, 1}}; }

qk_work qk_work_product(const qk_product *p) {
    enum { TILE = 32, SIDE = 16 };
    return (qk_work){{(size_t)qk_ceil_div(p->n, TILE) * SIDE, (size_t)qk_ceil_div(p->m, TILE) * SIDE,
                      (size_t)p->batches * (size_t)p->splits},
                     {SIDE, SIDE, 1}};
}

void qk_device_run(qk_device *d, qk_kernel_id kernel, qk_work work, const qk_argument *arguments, int count) {
    for (int i = 0; i < count && d->status == QK_OK; i++)
        is_done(d, kernel_names[kernel],
                d->cl.SetKernelArg(d->kernels[kernel], (uint32_t)i, arguments[i].size, arguments[i].value), false);
    if (d->status != QK_OK) return;
    is_done(d, kernel_names[kernel],
            d->cl.EnqueueNDRangeKernel(d->queue, d->kernels[kernel], 3, NULL, work.items, work.group, 0, NULL, NULL),
            true);
}
