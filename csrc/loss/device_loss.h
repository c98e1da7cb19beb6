/* The reconstruction loss of a layer and its gradient on a device, where all its samples lie: reconstruction.h is the
 * same on the processor. Sums of squares are float64, products float32 of at most QK_DEVICE_SPLIT columns. */
#ifndef QK_DEVICE_LOSS_H
#define QK_DEVICE_LOSS_H

#include "device/device.h"
#include "loss/reconstruction.h"

enum { QK_DEVICE_SPLIT = 512, QK_DEVICE_PANEL = 1 << 24 /* numbers: 64 MiB */ };

typedef struct {
    const qk_training_data *data;
    qk_device *device;
    int64_t rows, weights, most_columns; /* output channels, rows * K, columns of a panel */
    qk_device_layer layer;
    qk_device_stage stage;
    qk_input_kind kind;
    qk_buffer x, x_float, y;        /* all samples; x_float only where inputs are mixed */
    qk_buffer offsets, slopes;      /* (taps, positions); (rows) */
    qk_buffer which, streams;       /* the samples of calls; the random numbers that mix their inputs */
    qk_buffer input, panel, out;    /* (samples, x_sample), (groups * K, columns), (rows, columns) */
    qk_buffer parts, gradient;      /* (splits, rows, K) float32; (rows, K) float64: the sum of them */
    qk_buffer sums, power;          /* (rows, 4): see judge_outputs; (groups * K): sums of squares of inputs */
    qk_buffer own_weight, own_bias; /* of qk_device_reconstruct */
} qk_device_loss;

/* Samples of a call at most; calls that are set up together, of the gradient or for QDrop's mixed inputs. */
typedef struct {
    int64_t samples, listed;
    double drop_ratio;     /* below 1: inputs are mixed */
    int64_t panel_numbers; /* of a panel with its outputs; 0: QK_DEVICE_PANEL */
} qk_device_calls;

/* Whether a device can do it: no softmax, and sizes that it counts with 32 bits. */
bool qk_device_loss_applies(const qk_training_data *data, int64_t most_samples);
/* Copies the samples to the device, which is taken. qk_device_loss_destroy after a failure, too. QK_E_NOMEM, and what
 * devices give. */
qk_status qk_device_loss_init(qk_device_loss *l, const qk_training_data *data, qk_device *device,
                              qk_device_calls calls);
void qk_device_loss_destroy(qk_device_loss *l);

/* Lists samples for calls: `count` indices into the data, from place `first` on. */
qk_status qk_device_loss_list(qk_device_loss *l, const int64_t *samples, int64_t first, int64_t count);

/* What a call computes: on the listed samples first .. first + count - 1; sums always. */
typedef struct {
    int64_t first, count;
    bool mixes, gradient, power;
} qk_device_call;
/* weight (rows, K), bias (rows). The results stay in sums, gradient (both not divided yet) and power. */
void qk_device_loss_run(qk_device_loss *l, const qk_buffer *weight, const qk_buffer *bias, qk_device_call call);

/* qk_reconstruct, on the device. slope needs no gradient. */
qk_status qk_device_reconstruct(qk_device_loss *l, const float *weight, const float *bias, const int64_t *samples,
                                int64_t count, qk_reconstruction_result *result);

#endif
