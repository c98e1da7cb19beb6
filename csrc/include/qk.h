/* qk: the finetune core. The one public header; plain C11, no Python.
 *
 * Words used everywhere
 *   sample     one item of calibration data (one index of a batch's first axis)
 *   row        one output position of one sample: K inputs and O float outputs per group
 *   x          layer input as the quantized model feeds it (after its Q/DQ)
 *   y          the float model's layer output, before any activation
 *   G C mu m t E[x x'] (K,K), E[y x'] (O,K), E[x] (K), E[y] (O), E[y^2] (O): the moments of the rows
 * Arrays are C-contiguous. Data is float32; sums and factorisations are float64.
 * Results do not depend on the number of threads.
 */
#ifndef QK_H
#define QK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- status ---------------------------------------------------------------------------------- */
typedef enum {
    QK_OK = 0,
    QK_E_NOMEM,       /* out of memory */
    QK_E_ARG,         /* an argument is out of range */
    QK_E_SHAPE,       /* an array's shape does not fit the layer */
    QK_E_NONFINITE,   /* NaN or Inf in the data */
    QK_E_TOO_LARGE,   /* finite data whose squares or products are beyond what sums are taken in */
    QK_E_CANCELLED,   /* the progress callback asked to stop */
    QK_E_NO_ROWS,     /* too little data: no fitted or no held-out row */
    QK_E_DEVICE,      /* a device cannot be used, or failed: qk_device_message says why */
    QK_E_DEVICE_NOMEM /* a device is out of memory */
} qk_status;
const char *qk_strerror(qk_status status);

/* ---- threads --------------------------------------------------------------------------------- */
typedef struct qk_pool qk_pool;
/* threads, the caller included, from 1 to QK_MOST_THREADS. NULL when out of memory. In a child of fork() a pool goes on
 * to work, with the caller's thread alone. */
enum { QK_MOST_THREADS = 1024 };
qk_pool *qk_pool_new(int threads);
void qk_pool_free(qk_pool *pool);
int qk_pool_threads(const qk_pool *pool);

/* ---- devices --------------------------------------------------------------------------------- */
/* A device that computes beside the processor (OpenCL). One thread at a time uses it, others wait. In a child of fork()
 * it counts as lost. */
typedef struct qk_device qk_device;
typedef struct {
    int64_t index;      /* among all GPUs; or with any_kind among all devices of a platform */
    bool any_kind;      /* not GPUs alone */
    int64_t platform;   /* with any_kind */
    int64_t most_bytes; /* of memory that is used there; 0: no limit */
} qk_device_choice;
enum { QK_DEVICE_MESSAGE = 4096 };
/* message (QK_DEVICE_MESSAGE): why it cannot be used. QK_E_NOMEM, QK_E_DEVICE, QK_E_DEVICE_NOMEM. */
qk_status qk_device_open(qk_device **device, const qk_device_choice *choice, char *message);
/* No layer may use it any more. */
void qk_device_close(qk_device *device);
const char *qk_device_name(const qk_device *device);
/* Whether it failed for good: all calls give QK_E_DEVICE from then on. */
bool qk_device_is_lost(const qk_device *device);
/* message (QK_DEVICE_MESSAGE): what went wrong on the device. */
void qk_device_message(qk_device *device, char *message);

/* ---- numbers --------------------------------------------------------------------------------- */
typedef struct {
    float scale;
    int32_t zero_point;
} qk_affine;

/* Which values a scale can have. */
typedef enum {
    QK_SCALE_FLOAT32,
    QK_SCALE_POWER_OF_2,
    QK_SCALE_INT16 /* m 2^-n: a mantissa m of an int16, 2^14 <= m < 2^15, and a shift n */
} qk_scale_type;

/* The integer grid of a tensor. */
typedef struct {
    int32_t qmin, qmax;
    bool symmetric; /* zero_point 0, range widened to (-max|r|, max|r|) */
    qk_scale_type scale_type;
} qk_grid;

/* Scale and zero point of the value range (rmin, rmax), widened to contain 0: scale = (rmax - rmin) / (qmax - qmin), or
 * the next larger one of the grid's scale type; zero_point = round(qmin - rmin / scale). */
qk_affine qk_affine_from_range(double rmin, double rmax, qk_grid grid);

/* ONNX QuantizeLinear then DequantizeLinear: y = (clip(round_half_even(x / scale) + zp) - zp) * scale. */
void qk_fake_quant(float *y, const float *x, size_t n, qk_affine affine, qk_grid grid);

/* The instruction set of the kernels in use: "scalar", "avx2", "avx512" or "avx512vnni". The environment variable
 * QK_MAX_ISA caps it, with one of these names; empty or absent: no cap. */
const char *qk_isa(void);
/* Whether QK_MAX_ISA is one of these. Where it is not it caps nothing: whoever starts the core refuses it. */
bool qk_isa_cap_is_known(void);

typedef enum { QK_F32, QK_U8, QK_I8 } qk_dtype;

/* A tensor owned by the caller. 8-bit data stands for (q - zero_point) * scale. */
typedef struct {
    const void *data;
    qk_dtype dtype;
    int ndim; /* 1 .. QK_MAX_DIMS */
    int64_t dims[8];
    qk_affine affine; /* of 8-bit data */
} qk_tensor;
enum { QK_MAX_DIMS = 8, QK_MAX_SPATIAL = 3 };

/* ---- value range of a tensor, streaming ------------------------------------------------------ */
/* Minimum, maximum and a histogram, `bins` bins on each side of 0. The bin width is a power of two that doubles as
 * larger values arrive, so neither memory nor the result depends on how the data is cut into batches. */
typedef struct qk_value_range qk_value_range;
enum { QK_MOST_BINS = 1 << 24 };
/* bins: even, 2 .. QK_MOST_BINS. NULL when out of memory. */
qk_value_range *qk_value_range_new(int bins);
void qk_value_range_free(qk_value_range *range);
/* Adds n[i] values x[i] to ranges[i]. QK_E_NONFINITE on NaN or Inf: *bad is then the index i. */
qk_status qk_value_ranges_update(qk_value_range *const *ranges, const float *const *x, const size_t *n, size_t count,
                                 size_t *bad);
/* Adds what another range of as many bins has seen: `range` is then as if it had seen that itself. */
void qk_value_range_add(qk_value_range *range, const qk_value_range *other);
float qk_value_range_min(const qk_value_range *range);
float qk_value_range_max(const qk_value_range *range);
uint64_t qk_value_range_count(const qk_value_range *range);
/* The smallest bin edge t such that at least `percentile` percent of the values have |x| <= t. */
float qk_value_range_percentile(const qk_value_range *range, double percentile);
/* counts (2 bins): of the values between (i - bins) and (i - bins + 1) bin widths; returns the width. */
double qk_value_range_histogram(const qk_value_range *range, uint64_t *counts);

/* ---- which part of a tensor's values the integers cover -------------------------------------- */
/* The CalibMethod of an activation; docs/numerics.md defines them. */
typedef enum {
    QK_RANGE_MIN_MAX,
    QK_RANGE_PERCENTILE,
    QK_RANGE_MIN_MSE,
    QK_RANGE_ENTROPY,
    QK_RANGE_DISTRIBUTION,
    QK_RANGE_LAYERWISE_PERCENTILE
} qk_range_method;

typedef struct {
    qk_range_method method;
    qk_grid grid;              /* MinMSE, LayerwisePercentile: whose error counts */
    bool two_sided;            /* percentiles: half of the rest off each end, else all of it off the ends of |x| */
    const double *percentiles; /* in (0, 100]: one for Percentile, the candidates of LayerwisePercentile */
    int percentile_count;
    bool squared; /* LayerwisePercentile: by the mean squared error, else by the mean absolute one */
    int levels;   /* Entropy: even, 2 .. 2 bins */
} qk_range_choice;
/* Never wider than what was seen, except for Distribution. (0, 0) if nothing was. */
void qk_value_range_choose(const qk_value_range *range, const qk_range_choice *choice, float *lo, float *hi);

/* ---- a layer: from batches to moments -------------------------------------------------------- */
typedef enum { QK_PAD_EXPLICIT, QK_PAD_SAME_UPPER, QK_PAD_SAME_LOWER, QK_PAD_VALID } qk_auto_pad;

/* How rows are cut from x. spatial 0: x is (samples, ..., K) and y (samples, ..., O) (Gemm, MatMul).
 * spatial 1 .. 3: Conv or ConvTranspose on x (samples, C, in...) and y (samples, groups * O, out...). */
typedef struct {
    int spatial;
    qk_auto_pad auto_pad;
    int64_t groups;  /* 1 when spatial is 0 */
    int64_t outputs; /* O, per group */
    int64_t inputs;  /* K, per group: C / groups * prod(kernel) */
    int64_t kernel[QK_MAX_SPATIAL], stride[QK_MAX_SPATIAL], dilation[QK_MAX_SPATIAL];
    int64_t pad_begin[QK_MAX_SPATIAL], pad_end[QK_MAX_SPATIAL];
    bool transposed;                        /* ConvTranspose; what follows is 0 for Conv */
    int64_t output_padding[QK_MAX_SPATIAL]; /* more outputs at the end */
    int64_t output_shape[QK_MAX_SPATIAL];   /* out..., in place of the pads; 0: not given */
} qk_geometry;

/* Which rows of the data are used. */
typedef struct {
    int64_t samples;  /* how many samples will be fed; what comes beyond gives fewer and fewer rows */
    int64_t max_rows; /* about this many rows in all are kept, the same number from each sample */
    int holdout;      /* every holdout-th sample (or row, with few samples) is held out; 0: none */
    uint64_t seed;    /* of the choice of rows */
    int64_t kept;     /* so many rows of a set are kept as they are, without moments, at most QK_MOST_KEPT; 0: none */
    bool thinned;     /* of more rows than that, some are kept, one in 2, 4, 8, ...; else moments take their place */
} qk_row_choice;
enum { QK_MOST_KEPT = 1 << 16 };

typedef struct qk_layer qk_layer;
/* with_target: y is fed too. */
qk_status qk_layer_new(qk_layer **layer, const qk_geometry *geometry, const qk_row_choice *rows, bool with_target);
void qk_layer_free(qk_layer *layer);
/* The next samples, in order. y is NULL without target. After QK_E_NOMEM a layer is only good to be freed. */
qk_status qk_layer_feed(qk_layer *layer, const qk_tensor *x, const qk_tensor *y, qk_pool *pool);

/* How many samples x has, and positions, which can become rows, in each. QK_E_SHAPE where x does not fit. */
qk_status qk_layer_extent(const qk_layer *layer, const qk_tensor *x, int64_t *samples, int64_t *positions);

/* Before the first feed: moments are made on this device, which stays until the layer is freed. After QK_E_DEVICE a
 * layer is only good to be freed. */
void qk_layer_use_device(qk_layer *layer, qk_device *device);
/* Whether they are, or why the processor makes them. */
typedef enum {
    QK_NO_DEVICE,
    QK_ON_DEVICE,
    QK_DEVICE_HAS_NO_ROWS,   /* rows are kept as they are, few as they are */
    QK_DEVICE_HAS_NO_PHASES, /* a strided ConvTranspose */
    QK_DEVICE_IS_FULL        /* it was used as far as its memory went */
} qk_device_use;
qk_device_use qk_layer_device_use(const qk_layer *layer);

/* Adds what still waits in panels to the moments; call after the last feed. */
qk_status qk_layer_flush(qk_layer *layer, qk_pool *pool);

/* Adds the rows of another layer, of the same groups, inputs and outputs: for a weight that both have. The other may
 * have moments in place of kept rows afterwards. QK_E_ARG where they are not alike. */
qk_status qk_layer_join(qk_layer *layer, qk_layer *other, qk_pool *pool);

/* Moments take the place of kept rows, where the layer has such. */
qk_status qk_layer_make_moments(qk_layer *layer, qk_pool *pool);

typedef enum { QK_FITTED = 0, QK_HELD_OUT = 1 } qk_set;
int64_t qk_layer_rows(const qk_layer *layer, qk_set set);
/* Moments of one set, divided by its rows: per group gram (K,K), cross (O,K), mean_x (K), mean_y (O), power (O).
 * Without target cross, mean_y and power are left alone. QK_E_NOMEM; QK_E_ARG where rows are kept. Several threads may
 * read one layer at a time. */
qk_status qk_layer_moments(const qk_layer *layer, qk_set set, double *gram, double *cross, double *mean_x,
                           double *mean_y, double *power);
/* The mean input alone, (groups, K); rows may be kept. QK_E_NOMEM, QK_E_NO_ROWS. */
qk_status qk_layer_mean_input(const qk_layer *layer, qk_set set, double *mean_x);
const qk_geometry *qk_layer_geometry(const qk_layer *layer);

/* ---- weight scale by output error (CalibMethod.MinOutputMSE) --------------------------------- */
typedef struct {
    const float *weight; /* (groups * O, K) */
    qk_grid grid;
    bool per_channel; /* one scale per output channel, else one in all */
    bool bias_free;   /* the layer has a bias, which takes up the mean of the error */
} qk_scale_problem;
/* affine: (groups * O) or 1 entries. */
qk_status qk_choose_weight_scale(const qk_layer *layer, const qk_scale_problem *problem, qk_affine *affine,
                                 qk_pool *pool);
/* Chooses it by the squared error of the weight itself (CalibMethod.MinMSE): weight (rows, inputs). */
qk_status qk_choose_weight_scale_alone(const qk_scale_problem *problem, int64_t rows, int64_t inputs, qk_affine *affine,
                                       qk_pool *pool);

/* ---- least squares over the integers --------------------------------------------------------- */
typedef enum {
    QK_FLOOR_OR_CEIL, /* AdaRound: q in {floor(w/s), floor(w/s) + 1} + zp */
    QK_ANY_INTEGER    /* AdaQuant: any integer of the grid */
} qk_rounding_range;

/* The quantized layer at the start. Rows are output channels, groups * O of them. Weights, zero points and the ends of
 * the grid are integers that float32 holds, at most 2^24 in size: else QK_E_ARG. */
typedef struct {
    const float *weight;       /* float weight (rows, K) */
    const int32_t *weight_q;   /* (rows, K) */
    const float *weight_scale; /* (rows), or (rows, blocks) */
    const int32_t *weight_zp;  /* of the same shape */
    int64_t scale_block;       /* so many neighbouring inputs share a scale, it divides K; 0: all */
    int32_t qmin, qmax;
    const float *bias;       /* the start's bias as a real number (rows), NULL: none */
    const float *bias_scale; /* (rows), integer bias = bias / scale; NULL: the bias stays as it is */
    int32_t bias_qmin, bias_qmax;
} qk_quantized_layer;

#define QK_PART_FROM (INT64_C(1) << 30) /* a usual part_from: some seconds for all candidates */

typedef struct {
    qk_rounding_range rounding;
    bool update_bias;
    bool descends_only;    /* coordinate descent from the start is the only way to other weights */
    int max_sweeps;        /* of coordinate descent, for each candidate */
    const double *damping; /* candidates, relative to the mean diagonal of G */
    int damping_count;
    int64_t part_from; /* where rows * K * K is more, some of the outputs say which candidates all are tried with */
    /* Called between candidates by the calling thread; true: cancel. May be NULL. */
    bool (*cancelled)(void *user);
    void *user;
} qk_least_squares_options;

typedef enum { QK_START, QK_BIAS_ONLY, QK_DESCENT, QK_ROUNDING_DESCENT, QK_CANDIDATES } qk_candidate;

typedef struct {
    int32_t *weight_q; /* (rows, K), the caller's memory */
    int32_t *bias_q;   /* (rows), the caller's memory; untouched when the bias stays */
    /* Mean squared error of the layer's output per row, summed over outputs. */
    double before[2], after[2]; /* indexed by qk_set */
    double power[2];            /* E|y|^2, for relative errors */
    int64_t improved;           /* outputs whose held-out error is below the start's; the others stay as they were */
    qk_candidate candidate;     /* the one that won most of them */
    int64_t one_row_in;         /* solved on rows, of which every so manieth was kept; 0: on moments of all rows */
    bool float64_factor;        /* float32 was not enough for a factor */
    bool pilot_alone;           /* other integers gained next to nothing on a part of the outputs: no others got any */
} qk_least_squares_result;

/* Where a layer has no target the float weight gives it, y = W x, and there is no bias. */
qk_status qk_least_squares(const qk_layer *layer, const qk_quantized_layer *start,
                           const qk_least_squares_options *options, qk_pool *pool, qk_least_squares_result *result);

/* ---- what stands between a layer's output and the loss --------------------------------------- */
typedef enum {
    QK_NO_ACTIVATION,
    QK_CLIP,       /* from a to b; Relu: from 0 to infinity */
    QK_LEAKY_RELU, /* a x below 0; PRelu: a is the output's own */
    QK_SIGMOID,
    QK_TANH,
    QK_GELU,         /* with the normal distribution */
    QK_GELU_TANH,    /* its approximation */
    QK_HARD_SIGMOID, /* a x + b, from 0 to 1 */
    QK_HARD_SWISH,
    QK_SILU, /* x sigmoid(x) */
    QK_SOFTMAX
} qk_activation_kind;
typedef struct {
    qk_activation_kind kind;
    float a, b;
} qk_activation;

/* The loss compares Q(f(z)) with f(y): z is the quantized layer's output, y the float layer's. */
typedef struct {
    qk_activation activation;
    const float *slopes; /* (rows): `a` of each output; NULL: the same for all. The caller's memory */
    int axis;            /* of softmax, in y: 1 .. ndim - 1, or from the end: -1 .. */
    bool folded;         /* f(y) only: the ends of Q's grid do to z what f does */
    bool quantized;      /* Q is there; its gradient is 1 inside of the grid, else 0 */
    qk_affine affine;
    qk_grid grid;
} qk_output_stage;

/* ---- the published loops: AdaRound and AdaQuant by gradient ---------------------------------- */
/* The samples of a layer. Their memory stays with the caller and must outlive them. */
typedef struct qk_training_data qk_training_data;
/* stage is copied; NULL: nothing stands in between. holdout: every holdout-th sample only judges, if there are at least
 * 2 * holdout; 0: none. */
qk_status qk_training_data_new(qk_training_data **data, const qk_geometry *geometry, const qk_output_stage *stage,
                               int holdout);
void qk_training_data_free(qk_training_data *data);
/* The next samples. x: what the quantized graph feeds the layer; x_float: what the float graph does, float32 and of
 * the same shape, NULL if no step will mix them; y: float32. QK_E_SHAPE unless all samples have one shape. */
qk_status qk_training_data_add(qk_training_data *data, const qk_tensor *x, const qk_tensor *x_float,
                               const qk_tensor *y);

typedef enum { QK_ADAROUND, QK_ADAQUANT } qk_gradient_method;
typedef enum { QK_ITERATIONS_DONE, QK_STOPPED_EARLY } qk_gradient_end;

typedef struct {
    qk_gradient_method method;
    bool update_bias;
    int64_t batch_size;     /* samples per step; at most those that are trained on */
    int64_t step_positions; /* of all samples of a step, in whole pieces of some hundred; 0: all. Not on a device */
    int64_t iterations;
    double learning_rate;
    double reg_param; /* AdaRound; docs/numerics.md says what 0.01 means */
    double warm_start, beta_start, beta_end;
    double drop_ratio; /* each input of a step is x with this probability, else x_float; 1: always x */
    int64_t window;    /* of early stop, in steps; 0: no early stop */
    int64_t patience;
    uint64_t seed;
    /* Another solution for the same start, kept where it is the best: (rows, K), (rows). NULL: none. The second is not
     * read where the bias stays. */
    const int32_t *offered_weight_q, *offered_bias_q;
    double *losses;    /* (iterations): reconstruction loss of every step (NaN: not run), the caller's; may be NULL */
    qk_device *device; /* where samples are judged and steps run, softmax excepted; NULL: the processor */
    /* Called now and then by the calling thread; true: cancel. May be NULL. */
    bool (*cancelled)(void *user);
    void *user;
} qk_gradient_options;

typedef struct {
    int32_t *weight_q; /* (rows, K), the caller's memory */
    int32_t *bias_q;   /* (rows), the caller's memory; untouched when the bias stays */
    /* Reconstruction loss of the start and of the result, all samples of a set; indexed by qk_set. NaN: no held-out. */
    double before[2], after[2];
    double power[2]; /* mean square of the target, for relative errors; NaN: no held-out */
    int64_t samples[2];
    int64_t improved;   /* outputs whose judging loss is below the start's; the others are as they were */
    int64_t trained;    /* those of them for which the steps did it, not the solution that was offered */
    int64_t iterations; /* that were run */
    qk_gradient_end end;
    bool on_device; /* that the options name; false: the processor did it */
} qk_gradient_result;

/* Reconstruction loss of the start over all samples, whatever set they are in. */
qk_status qk_start_loss(const qk_training_data *data, const qk_quantized_layer *start, qk_pool *pool, double *loss);
qk_status qk_train(const qk_training_data *data, const qk_quantized_layer *start, const qk_gradient_options *options,
                   qk_pool *pool, qk_gradient_result *result);

/* ---- selective update: is the whole model better than it was? --------------------------------- */
/* `sum` and, one after the other, the L2 norm of have - want of every sample; both are (samples, size). */
double qk_add_distances(double sum, const float *have, const float *want, int64_t samples, int64_t size);
/* Whether a model's score is strictly below that of the model kept last; NaN never is. */
bool qk_is_better(double score, double kept);

#endif
