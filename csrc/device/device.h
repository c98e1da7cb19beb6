/* A device that computes beside the processor, by OpenCL: memory there, and kernels (kernels.cl) that run one after the
 * other in the order in which they are asked for.
 *
 * Nothing here returns an error. After a failure all that follows does nothing, and qk_device_release says what it was:
 * so a sequence of steps reads like one on the processor. */
#ifndef QK_DEVICE_H
#define QK_DEVICE_H

#include "device/arguments.h"
#include "qk.h"

/* Memory on a device. All zeros: none. */
typedef struct {
    qk_device *device;
    void *memory;
    size_t bytes;
} qk_buffer;

/* Takes a device for the calling thread until it is released; others wait. */
void qk_device_take(qk_device *d);
/* Waits until all is done, and gives the device back. QK_E_DEVICE_NOMEM; QK_E_DEVICE, which stays. */
qk_status qk_device_release(qk_device *d);
/* The device, which is taken, is used on after QK_E_DEVICE_NOMEM. */
void qk_device_forgive(qk_device *d);
/* Waits until all is done that was asked for so far. */
qk_status qk_device_finish(qk_device *d);
/* What went wrong so far, of what has come back already. */
qk_status qk_device_status(const qk_device *d);

/* n zeros of the given size. */
qk_buffer qk_buffer_new(qk_device *d, int64_t n, size_t size);
void qk_buffer_free(qk_buffer *b);
/* At `offset` of the buffer; returns when all is done. */
void qk_buffer_write(const qk_buffer *b, size_t offset, const void *from, size_t bytes);
void qk_buffer_read(const qk_buffer *b, size_t offset, void *to, size_t bytes);
/* Both are of one size. */
void qk_buffer_copy(const qk_buffer *to, const qk_buffer *from);
void qk_buffer_clear(const qk_buffer *b);

/* The kernels of kernels.cl. */
#define QK_DEVICE_KERNELS(X) \
    X(take_inputs)           \
    X(fill_panel)            \
    X(multiply)              \
    X(judge_outputs)         \
    X(add_parts)             \
    X(sum_squares)           \
    X(sum_step)              \
    X(soft_weights)          \
    X(move_soft)             \
    X(straight_weights)      \
    X(move_straight)         \
    X(move_bias)             \
    X(cut_rows)              \
    X(add_products)          \
    X(sum_lines)
typedef enum {
#define QK_KERNEL_ID(name) QK_KERNEL_##name,
    QK_DEVICE_KERNELS(QK_KERNEL_ID)
#undef QK_KERNEL_ID
        QK_KERNEL_COUNT
} qk_kernel_id;

/* What a kernel gets for one of its parameters. */
typedef struct {
    size_t size;
    const void *value;
} qk_argument;
#define QK_BUFFER(b) ((qk_argument){sizeof(void *), &(b).memory})
#define QK_VALUE(v) ((qk_argument){sizeof(v), &(v)})

/* Work items of each dimension, and of a work-group; the first are multiples of the second. */
typedef struct {
    size_t items[3], group[3];
} qk_work;
void qk_device_run(qk_device *d, qk_kernel_id kernel, qk_work work, const qk_argument *arguments, int count);
#define QK_RUN(device, kernel, work, ...)                                               \
    qk_device_run(device, QK_KERNEL_##kernel, work, (const qk_argument[]){__VA_ARGS__}, \
                  (int)(sizeof((const qk_argument[]){__VA_ARGS__}) / sizeof(qk_argument)))
/* At least n items, in work-groups of QK_GROUP; and a work-group for each of n lines. */
enum { QK_GROUP = 64 };
qk_work qk_work_items(int64_t n);
qk_work qk_work_lines(int64_t n);
qk_work qk_work_product(const qk_product *p);

/* qk_device_open, for tests: of another program. */
qk_status qk_device_open_with(qk_device **device, const qk_device_choice *choice, const char *source, char *message);
/* From now on the device counts as lost, for the given reason. */
void qk_device_lose(qk_device *d, const char *why);

#endif
