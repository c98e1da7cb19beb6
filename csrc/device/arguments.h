/* What kernels take by value: read by C and, in front of kernels.cl, by a device's compiler. All members are 32 bits,
 * so that both lay them out alike. */
#ifndef QK_DEVICE_ARGUMENTS_H
#define QK_DEVICE_ARGUMENTS_H

/* A layer's samples on the device. Input k of group g is channel g * channels + k / taps, tap k % taps. */
typedef struct {
    int groups, outputs, inputs; /* O, K per group */
    int channels, taps, positions;
    int x_sample, x_channel, y_sample, y_output, y_position; /* strides in elements */
} qk_device_layer;

/* Columns first .. first + count - 1 of a call: output position column % positions of its sample column / positions. */
typedef struct {
    int first, count;
} qk_columns;

/* How inputs are stored, and how they are mixed with the float graph's: those whose random number (below 2^53, of
 * which these are the halves) is not below `below` come from there. */
typedef struct {
    int dtype;      /* qk_dtype */
    int zero_point; /* of bytes */
    float scale;
    int mixes;
    unsigned below_low, below_high;
} qk_input_kind;

/* Rows that are cut into a panel of `capacity` columns, from `column` on. */
typedef struct {
    int taps, channel_stride, capacity, column, count;
} qk_cut;

/* Products of the first `used` columns of panels; is_lower: the lower triangle is enough. */
typedef struct {
    int m, n, groups, capacity, used, is_lower;
} qk_panel_product;

/* c (m, n) = a (m, k) b (k, n), once for each of `batches` groups and `splits` parts of k, each of `split` columns, but
 * the last one. Strides in elements: of a line and of a column of a and b; c has lines of n. */
typedef struct {
    int m, n, k, batches, splits, split;
    int a_line, a_column, a_batch, b_line, b_column, b_batch;
} qk_product;

/* qk_output_stage, but softmax. */
typedef struct {
    int kind; /* qk_activation_kind */
    float a, b;
    int has_slopes, folded, quantized;
    float scale, zero_point, lo, hi;
} qk_device_stage;

/* Weights in steps: rows of K inputs, `block` of which share a scale. */
typedef struct {
    int inputs, block;
    float lo, hi;
    float step_size, v_correction; /* qk_adam */
    float penalty, beta;           /* of AdaRound's regulariser */
    float factor;                  /* from sums of products to the gradient */
} qk_device_step;

#endif
