/* The inner loops, as a table: one entry per loop, one table per instruction set, picked once at run time.
 * Every table holds the same source (body.inc) compiled for its instruction set, without contraction to FMA and
 * with sums in a fixed number of lanes, so that all tables give the same bits. No malloc, no threads, no errors. */
#ifndef QK_KERNELS_H
#define QK_KERNELS_H

#include "qk.h"

/* One step t of Adam (arXiv 1412.6980), the same for all weights. What corrects the averages is divided once. */
typedef struct {
    float step_size;    /* the learning rate / (1 - beta1^t) */
    float v_correction; /* 1 / (1 - beta2^t) */
} qk_adam;
qk_adam qk_adam_at(double learning_rate, int64_t t);

/* AdaRound (arXiv 2004.10568), n weights of one scale: w = scale (clip(base + h) - zp), h the rectified
 * sigmoid of alpha. lo, hi: the integers that may be used. */
typedef struct {
    float *alpha, *m, *v; /* (n): variable, and Adam's first and second moment of its gradient */
    float *sigmoid;       /* (n): of alpha; set by soft_rounding_weights, then kept up to date */
    const float *base;    /* (n): floor(w / scale) + zp */
    float *weight;        /* (n): becomes the soft weight */
    float scale, zp, lo, hi;
    float penalty, beta; /* of the regulariser 1 - |2h - 1|^beta */
} qk_soft_rounding;

/* AdaQuant (arXiv 2006.10518), n weights of one scale: w^ = scale (clip(round(w / scale) + zp) - zp). */
typedef struct {
    float *real, *m, *v; /* (n): variable, and Adam's first and second moment of its gradient */
    float *weight;       /* (n): becomes the quantized weight */
    float scale, zp, lo, hi;
} qk_straight_through;

/* QK_LANES integer problems side by side: arrays (n, QK_LANES). (solvers/integer_rows.h) */
enum { QK_LANES = 32 };
typedef struct {
    const float *scale, *zp; /* (QK_LANES), or (blocks, QK_LANES) */
    const float *lo, *hi;
    float *q;
    int64_t scale_block, first; /* inputs that share a scale, 0: all; the input that the arrays begin with */
} qk_lanes;

/* One of these problems alone: arrays (n). */
typedef struct {
    const float *scale, *curvature, *lo, *hi; /* curvature: the diagonal of G */
    float *q, *residual;
} qk_line;

/* Many values are zero: were they counted in one place, each count would wait for the one before. A power of two. */
enum { QK_ZERO_TURNS = 16 };

typedef struct {
    const char *isa;

    void (*fake_quant)(float *restrict y, const float *restrict x, size_t n, qk_affine affine, qk_grid grid);

    /* dst = (src - zero_point) * scale, DequantizeLinear on 8 bits. */
    void (*dequantize_u8)(float *restrict dst, const uint8_t *restrict src, size_t n, qk_affine affine);
    void (*dequantize_i8)(float *restrict dst, const int8_t *restrict src, size_t n, qk_affine affine);

    /* dst[i] = src[index[i]]; of bytes: dst[i] = table[src[index[i]]], table (256). */
    void (*gather_f32)(float *restrict dst, const float *restrict src, const int32_t *index, size_t n);
    void (*gather_bytes)(float *restrict dst, const uint8_t *restrict src, const int32_t *index, size_t n,
                         const float *table);

    /* Widens [*lo, *hi] by the values; false if one is NaN or Inf. */
    bool (*min_max)(const float *x, size_t n, float *lo, float *hi);
    /* Where x[i] is counted: i % QK_ZERO_TURNS for bin 0, QK_ZERO_TURNS - 1 + bin for others, last + 1 more where x[i]
     * < 0; its bin is min(|x[i]| * inverse_width, last). */
    void (*bin_indices)(uint32_t *restrict index, const float *restrict x, size_t n, float inverse_width,
                        uint32_t last);
    /* Moves the indices of other bins than bin 0 to the front, with some of bin 0 among them, and returns how many they
     * are. Without AVX-512 nothing is moved, and n is returned. */
    size_t (*drop_zeros)(uint32_t *index, size_t n);
    /* to[i] += a[i] + b[i] */
    void (*add_counts)(uint64_t *restrict to, const uint16_t *restrict a, const uint16_t *restrict b, size_t n);

    /* sum and sum of squares of n values */
    double (*sum)(const float *x, size_t n);
    /* These sum values and products in float64. */
    double (*exact_sum)(const float *x, size_t n);
    double (*exact_product)(const float *restrict x, const float *restrict y, size_t n);
    double (*sum_squares)(const float *x, size_t n);
    /* gram (k,k) += panel panel', cross (k) += panel y, for k short rows of n values `stride` apart. Both triangles. */
    void (*gram_panel)(double *restrict gram, double *restrict cross, const float *panel, const float *y, int64_t k,
                       int64_t stride, size_t n);

    /* Lines first .. end - 1 of a lower triangle, gram (k,k) += a (a - 128)', for lines a of n bytes, `stride` apart; n
     * at most 2^16. Exact as long as the sums stay below 2^53. */
    void (*gram_bytes)(double *restrict gram, const uint8_t *panel, int64_t k, int64_t first, int64_t end,
                       int64_t stride, size_t n);
    int64_t (*sum_bytes)(const uint8_t *x, size_t n);
    /* sum of (x - zero_point) y */
    double (*dot_bytes)(const uint8_t *restrict x, int32_t zero_point, const float *restrict y, size_t n);

    /* y += a x */
    void (*axpy)(double *restrict y, double a, const double *restrict x, size_t n);
    double (*dot)(const double *x, const double *y, size_t n);
    double (*dot_f32)(const float *x, const float *y, size_t n);

    /* y = w x for k lines of n values, ld apart. */
    void (*weighted_sum)(float *restrict y, const float *w, const float *restrict x, int64_t k, int64_t ld, size_t n);
    /* out += bias - target; returns the sum of its squares. */
    double (*output_error)(float *restrict out, const float *restrict target, float bias, size_t n);
    /* value = f(z + bias), slope = f'(z + bias); f is not softmax. */
    void (*activate)(float *restrict value, float *restrict slope, const float *restrict z, float bias,
                     const qk_activation *f, size_t n);
    /* value goes through Q/DQ; slope becomes 0 where value lies outside of the grid. */
    void (*fake_quant_through)(float *restrict value, float *restrict slope, size_t n, qk_affine affine, qk_grid grid);
    /* error = (value - target) * slope; returns the sum of the squares of value - target. */
    double (*sloped_error)(float *restrict error, const float *restrict value, const float *restrict target,
                           const float *restrict slope, size_t n);
    /* One step of Adam for n variables. */
    void (*adam)(float *restrict variable, float *restrict m, float *restrict v, const float *restrict gradient,
                 qk_adam adam, size_t n);
    /* Sets weight and sigmoid from the variables. */
    void (*soft_rounding_weights)(const qk_soft_rounding *r, size_t n);
    /* One step along `gradient`, of the loss by the weight, and the weights then. Returns the sum of the regulariser
     * 1 - |2h - 1|^beta before the step, 0 where it has no penalty. */
    double (*soft_rounding_step)(const qk_soft_rounding *r, const float *restrict gradient, qk_adam adam, size_t n);
    /* AdaQuant's variables have these two. */
    void (*straight_through_weights)(const qk_straight_through *r, size_t n);
    void (*straight_through_step)(const qk_straight_through *r, const float *restrict gradient, qk_adam adam, size_t n);

    /* to (n) += step[i] * line which[i] of `lines`, for all i < count; lines are ld apart. */
    void (*add_lines)(float *restrict to, const float *step, const int32_t *which, int32_t count,
                      const float *restrict lines, int64_t ld, size_t n);
    /* One sweep of coordinate descent over n inputs of one output, gram (n, ld). The residual is kept up to date.
     * which, step (n): the inputs that moved, in order, and how their weights changed. Returns how many did. */
    int32_t (*descend_line)(const qk_line *line, const float *gram, int64_t ld, int32_t *which, float *step, size_t n);
    /* GPTQ: rounds n inputs, from the last to the first. l (n, ld): their part of the Cholesky factor;
     * carried (n, QK_LANES): what later inputs carry on, kept up to date; d becomes w - target. */
    void (*round_carrying)(const qk_lanes *lanes, const float *target, const float *l, int64_t ld,
                           float *restrict carried, float *restrict d, size_t n);

    /* Winograd's F(4x4, 3x3) (winograd.inc). Squares lie in a plane: square i begins at plane[at[i]], its rows are
     * `width` apart; transformed, element f of all n squares is line f, lines are ld apart.
     *   input     B' d B: 6x6 inputs -> 36 lines     output     A' m A: 36 lines -> 4x4 outputs
     *   error     A e A': 4x4 errors -> 36 lines     gradient   G' u G: 36 lines -> 3x3 derivatives
     *   filter    G g G': 3x3 weights -> 36 lines */
    void (*winograd_input)(float *restrict to, int64_t ld, const float *restrict plane, const int32_t *restrict at,
                           int64_t width, size_t n);
    void (*winograd_error)(float *restrict to, int64_t ld, const float *restrict plane, const int32_t *restrict at,
                           int64_t width, size_t n);
    void (*winograd_filter)(float *restrict to, int64_t ld, const float *restrict plane, const int32_t *restrict at,
                            int64_t width, size_t n);
    void (*winograd_output)(float *restrict plane, const int32_t *restrict at, int64_t width,
                            const float *restrict from, int64_t ld, size_t n);
    void (*winograd_gradient)(float *restrict plane, const int32_t *restrict at, int64_t width,
                              const float *restrict from, int64_t ld, size_t n);
} qk_kernels;

const qk_kernels *qk_kernels_get(void);

extern const qk_kernels qk_kernels_scalar;
#if defined(__x86_64__) && defined(__GNUC__)
#define QK_HAVE_X86 1
extern const qk_kernels qk_kernels_avx2, qk_kernels_avx512, qk_kernels_avx512vnni;
#endif

#endif
