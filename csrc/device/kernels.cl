/* The kernels of device.h, in OpenCL C 1.2; arguments.h stands in front. Sums have a fixed order: one device gives the
 * same bits each time. Products are float32; sums of many of them float64. */
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#pragma OPENCL FP_CONTRACT OFF

#define GROUP 64 /* work items of a line's work-group */
#define SIDE 16  /* of a product's work-group; each item has 2 x 2 results */
#define TILE 32
#define DEPTH 16

/* The sum over a work-group of GROUP items; all must come here. */
static double sum_of_group(double mine, __local double *shared) {
    const int i = get_local_id(0);
    barrier(CLK_LOCAL_MEM_FENCE);
    shared[i] = mine;
    for (int apart = GROUP / 2; apart > 0; apart /= 2) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (i < apart) shared[i] += shared[i + apart];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return shared[0];
}

static float bounded(float x, float lo, float hi) { return fmin(fmax(x, lo), hi); }

/* Division of float32 may be less exact than rounding needs: by way of float64 it is rounded correctly. */
static float steps_of(float x, float scale) { return (float)((double)x / (double)scale); }

/* ---- inputs ------------------------------------------------------------------------------------ */

/* Random number `at` of a stream (base/random.h). */
static ulong random_at(ulong state, ulong at) {
    ulong z = state + (at + 1) * 0x9E3779B97F4A7C15UL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9UL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBUL;
    return z ^ (z >> 31);
}

static float input_at(__global const void *x, ulong at, qk_input_kind kind) {
    if (kind.dtype == 0) return ((__global const float *)x)[at];
    const int q = kind.dtype == 1 ? ((__global const uchar *)x)[at] : ((__global const char *)x)[at];
    return (float)(q - kind.zero_point) * kind.scale;
}

/* to (samples, x_sample) = the inputs of the samples which[first] ... Dimensions: elements, samples. streams: the state
 * of each sample's random numbers, where inputs are mixed. */
__kernel void take_inputs(__global float *to, __global const void *x, __global const float *x_float,
                          __global const int *which, int first, __global const ulong *streams, qk_device_layer l,
                          qk_input_kind kind) {
    const int i = get_global_id(0), sample = get_global_id(1);
    if (i >= l.x_sample) return;
    const ulong from = (ulong)which[first + sample] * (ulong)l.x_sample + (ulong)i;
    float value = input_at(x, from, kind);
    if (kind.mixes) {
        const ulong below = ((ulong)kind.below_high << 32) | (ulong)kind.below_low;
        if ((random_at(streams[first + sample], (ulong)i) >> 11) >= below) value = x_float[from];
    }
    to[(ulong)sample * (ulong)l.x_sample + (ulong)i] = value;
}

/* im2col: panel (groups * K, columns). offsets (taps, positions): of the input in channel 0, -1: padding. Dimensions:
 * columns, lines. */
__kernel void fill_panel(__global float *panel, __global const float *x, __global const int *offsets,
                         qk_device_layer l, qk_columns c) {
    const int column = get_global_id(0), line = get_global_id(1);
    if (column >= c.count) return;
    const int sample = (c.first + column) / l.positions, position = (c.first + column) % l.positions;
    const int channel = line / l.taps, offset = offsets[line % l.taps * l.positions + position];
    const ulong at = (ulong)sample * (ulong)l.x_sample + (ulong)channel * (ulong)l.x_channel;
    panel[(ulong)line * (ulong)c.count + (ulong)column] = offset < 0 ? 0 : x[at + (ulong)offset];
}

/* ---- products ---------------------------------------------------------------------------------- */

/* Dimensions: columns, lines, batches * splits. c (batches, m, n) of each split. */
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void multiply(__global float *c, __global const float *a,
                                                                            __global const float *b, qk_product p) {
    __local float as[DEPTH][TILE + 1], bs[DEPTH][TILE + 1];
    const int x = get_local_id(0), y = get_local_id(1), item = y * SIDE + x;
    const int column = get_group_id(0) * TILE, line = get_group_id(1) * TILE;
    const int batch = get_group_id(2) % p.batches, split = get_group_id(2) / p.batches;
    const int end = min(p.k, (split + 1) * p.split);
    float sum00 = 0, sum01 = 0, sum10 = 0, sum11 = 0;
    a += (ulong)batch * (ulong)p.a_batch;
    b += (ulong)batch * (ulong)p.b_batch;
    for (int first = split * p.split; first < end; first += DEPTH) {
        for (int e = item; e < TILE * DEPTH; e += SIDE * SIDE) {
            /* Neighbours read neighbours in memory. */
            const int a_k = p.a_column == 1 ? e % DEPTH : e / TILE, i = p.a_column == 1 ? e / DEPTH : e % TILE;
            const int b_k = p.b_line == 1 ? e % DEPTH : e / TILE, j = p.b_line == 1 ? e / DEPTH : e % TILE;
            const bool has_a = line + i < p.m && first + a_k < end, has_b = column + j < p.n && first + b_k < end;
            as[a_k][i] = has_a ? a[(ulong)(line + i) * (ulong)p.a_line + (ulong)(first + a_k) * (ulong)p.a_column] : 0;
            bs[b_k][j] = has_b ? b[(ulong)(first + b_k) * (ulong)p.b_line + (ulong)(column + j) * (ulong)p.b_column] : 0;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int k = 0; k < DEPTH; k++) {
            const float a0 = as[k][y], a1 = as[k][y + SIDE], b0 = bs[k][x], b1 = bs[k][x + SIDE];
            sum00 = fma(a0, b0, sum00);
            sum01 = fma(a0, b1, sum01);
            sum10 = fma(a1, b0, sum10);
            sum11 = fma(a1, b1, sum11);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    c += ((ulong)split * (ulong)p.batches + (ulong)batch) * (ulong)p.m * (ulong)p.n;
    const int i = line + y, j = column + x;
    if (i < p.m && j < p.n) c[(ulong)i * (ulong)p.n + j] = sum00;
    if (i < p.m && j + SIDE < p.n) c[(ulong)i * (ulong)p.n + j + SIDE] = sum01;
    if (i + SIDE < p.m && j < p.n) c[(ulong)(i + SIDE) * (ulong)p.n + j] = sum10;
    if (i + SIDE < p.m && j + SIDE < p.n) c[(ulong)(i + SIDE) * (ulong)p.n + j + SIDE] = sum11;
}

/* to[i] = (begins ? 0 : to[i]) + the sum of parts[split, i] */
__kernel void add_parts(__global double *to, __global const float *parts, int splits, int n, int begins) {
    const int i = get_global_id(0);
    if (i >= n) return;
    double sum = begins ? 0 : to[i];
    for (int split = 0; split < splits; split++) sum += (double)parts[(ulong)split * (ulong)n + (ulong)i];
    to[i] = sum;
}

/* to[line] += the squares of a line of x (lines, n), of which a work-group takes one. */
__kernel void sum_squares(__global double *to, __global const float *x, int n, int begins) {
    __local double shared[GROUP];
    const int line = get_group_id(0);
    double sum = 0;
    for (int i = get_local_id(0); i < n; i += GROUP) {
        const double value = x[(ulong)line * (ulong)n + (ulong)i];
        sum += value * value;
    }
    sum = sum_of_group(sum, shared);
    if (get_local_id(0) == 0) to[line] = (begins ? 0 : to[line]) + sum;
}

/* ---- from outputs to errors -------------------------------------------------------------------- */

static float sigmoid(float x) { return 1 / (1 + exp(-bounded(x, -80, 80))); }

/* f(x) and f'(x); the kinds are qk_activation_kind's. */
static float activate(int kind, float a, float b, float x, float *slope) {
    *slope = 1;
    switch (kind) {
    case 1: *slope = x >= a && x <= b ? 1 : 0; return bounded(x, a, b);
    case 2: *slope = x < 0 ? a : 1; return x * *slope;
    case 3: {
        const float share = sigmoid(x);
        *slope = share * (1 - share);
        return share;
    }
    case 4: {
        const float t = tanh(x);
        *slope = 1 - t * t;
        return t;
    }
    case 5: {
        const float share = 0.5f * (1 + erf(x * 0.707106781f));
        *slope = share + x * 0.398942280f * exp(-0.5f * x * x);
        return x * share;
    }
    case 6: {
        const float t = tanh(0.797884561f * (x + 0.044715f * x * x * x));
        *slope = 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * (0.797884561f * (1 + 0.134145f * x * x));
        return 0.5f * x * (1 + t);
    }
    case 7: {
        const float line = a * x + b;
        *slope = line >= 0 && line <= 1 ? a : 0;
        return bounded(line, 0, 1);
    }
    case 8: *slope = x < -3 ? 0 : x > 3 ? 1 : x / 3 + 0.5f; return x * bounded(x / 6 + 0.5f, 0, 1);
    case 9: {
        const float share = sigmoid(x), value = x * share;
        *slope = share + value * (1 - share);
        return value;
    }
    default: return x;
    }
}

/* A work-group has one row (group * O + output). out (rows, columns) becomes the error times the stage's slope; sums
 * (rows, 4): squares of the error, that product, squares of the slope, squares of the target. */
__kernel void judge_outputs(__global float *out, __global const float *y, __global const int *which, int first,
                            __global const float *bias, __global const float *slopes, __global double *sums,
                            qk_device_layer l, qk_columns c, qk_device_stage stage) {
    __local double shared[GROUP];
    const int row = get_group_id(0);
    const float a = stage.has_slopes ? slopes[row] : stage.a;
    double loss = 0, error_sum = 0, slope_power = 0, target_power = 0;
    for (int i = get_local_id(0); i < c.count; i += GROUP) {
        const int sample = (c.first + i) / l.positions, position = (c.first + i) % l.positions;
        const ulong at = (ulong)which[first + sample] * (ulong)l.y_sample + (ulong)row * (ulong)l.y_output +
                         (ulong)position * (ulong)l.y_position;
        const ulong to = (ulong)row * (ulong)c.count + (ulong)i;
        float slope, unused;
        const float target = activate(stage.kind, a, stage.b, y[at], &unused);
        float value = activate(stage.folded ? 0 : stage.kind, a, stage.b, out[to] + bias[row], &slope);
        if (stage.quantized) {
            const float q = rint(steps_of(value, stage.scale)) + stage.zero_point;
            if (q < stage.lo || q > stage.hi) slope = 0;
            value = (bounded(q, stage.lo, stage.hi) - stage.zero_point) * stage.scale;
        }
        const float error = value - target, sloped = error * slope;
        out[to] = sloped;
        loss += (double)error * (double)error;
        error_sum += (double)sloped;
        slope_power += (double)slope * (double)slope;
        target_power += (double)target * (double)target;
    }
    const double found[4] = {sum_of_group(loss, shared), sum_of_group(error_sum, shared),
                             sum_of_group(slope_power, shared), sum_of_group(target_power, shared)};
    for (int i = 0; i < 4 && get_local_id(0) == 0; i++)
        sums[row * 4 + i] = (c.first == 0 ? 0 : sums[row * 4 + i]) + found[i];
}

/* losses[2 step] = the sum over rows of the loss, [2 step + 1] = of the regulariser in units of the loss. One work-group;
 * sums as judge_outputs leaves them, regulariser and per_unit (rows). */
__kernel void sum_step(__global double *losses, int step, __global const double *sums,
                       __global const double *regulariser, __global const float *per_unit, int rows) {
    __local double shared[GROUP];
    double loss = 0, regular = 0;
    for (int row = get_local_id(0); row < rows; row += GROUP) {
        loss += sums[row * 4];
        if (per_unit[row] > 0) regular += regulariser[row] / (double)per_unit[row];
    }
    loss = sum_of_group(loss, shared);
    regular = sum_of_group(regular, shared);
    if (get_local_id(0) != 0) return;
    losses[2 * step] = loss;
    losses[2 * step + 1] = regular;
}

/* ---- steps of the gradient loops (kernels/gradient_steps.inc) ---------------------------------- */

static float adam_step(__global float *m, __global float *v, float gradient, qk_device_step s) {
    const float g = fabs(gradient) > 1e-15f ? gradient : 0;
    const float mean = 0.9f * *m + 0.1f * g, square = 0.999f * *v + 0.001f * (g * g);
    *m = fabs(mean) > 1e-30f ? mean : 0;
    *v = square > 1e-30f ? square : 0;
    return s.step_size * *m / (sqrt(*v * s.v_correction) + 1e-8f);
}

static float regulariser_slope(float h, float beta, double *left) {
    const float u = 2 * h - 1, size = fmax(fabs(u), 1e-12f), exponent = (beta - 1) * log2(size);
    const float power = exp2(fmax(exponent, -64.0f));
    *left += (double)(1 - power * size);
    return fabs(u) > 1e-6f ? -2 * beta * power * (u < 0 ? -1 : 1) : 0;
}

static float soft_weight(float sigmoid_of_alpha, float base, float scale, float zero_point, qk_device_step s) {
    const float h = bounded(1.2f * sigmoid_of_alpha - 0.1f, 0, 1);
    return scale * (bounded(base + h, s.lo, s.hi) - zero_point);
}

/* A work-group has one row of the weights in all that follow; alpha, base, weight (rows, K); scale, zero_point (rows,
 * blocks). */
__kernel void soft_weights(__global float *weight, __global const float *alpha, __global const float *base,
                           __global const float *scale, __global const float *zero_point, qk_device_step s) {
    const int row = get_group_id(0), blocks = s.inputs / s.block;
    for (int k = get_local_id(0); k < s.inputs; k += GROUP) {
        const int i = row * s.inputs + k, of = row * blocks + k / s.block;
        weight[i] = soft_weight(sigmoid(alpha[i]), base[i], scale[of], zero_point[of], s);
    }
}

__kernel void move_soft(__global float *weight, __global float *alpha, __global float *m, __global float *v,
                        __global const float *base, __global const float *scale, __global const float *zero_point,
                        __global const double *gradient, __global const float *per_unit, __global double *regulariser,
                        qk_device_step s) {
    __local double shared[GROUP];
    const int row = get_group_id(0), blocks = s.inputs / s.block;
    double left = 0;
    for (int k = get_local_id(0); k < s.inputs; k += GROUP) {
        const int i = row * s.inputs + k, of = row * blocks + k / s.block;
        const float g = (float)((double)s.factor * gradient[i]) * per_unit[row];
        const float sigmoids = sigmoid(alpha[i]), t = 1.2f * sigmoids - 0.1f, h = bounded(t, 0, 1), q = base[i] + h;
        float by_h = q >= s.lo && q <= s.hi ? g * scale[of] : 0;
        if (s.penalty > 0) by_h += s.penalty * regulariser_slope(h, s.beta, &left);
        const float by_alpha = t > 0 && t < 1 ? 1.2f * sigmoids * (1 - sigmoids) : 0;
        alpha[i] -= adam_step(m + i, v + i, by_h * by_alpha, s);
        weight[i] = soft_weight(sigmoid(alpha[i]), base[i], scale[of], zero_point[of], s);
    }
    left = sum_of_group(left, shared);
    if (get_local_id(0) == 0) regulariser[row] = left;
}

static float straight_weight(float real, float scale, float zero_point, qk_device_step s) {
    return scale * (bounded(rint(steps_of(real, scale)) + zero_point, s.lo, s.hi) - zero_point);
}

__kernel void straight_weights(__global float *weight, __global const float *real, __global const float *scale,
                               __global const float *zero_point, qk_device_step s) {
    const int row = get_group_id(0), blocks = s.inputs / s.block;
    for (int k = get_local_id(0); k < s.inputs; k += GROUP) {
        const int i = row * s.inputs + k, of = row * blocks + k / s.block;
        weight[i] = straight_weight(real[i], scale[of], zero_point[of], s);
    }
}

__kernel void move_straight(__global float *weight, __global float *real, __global float *m, __global float *v,
                            __global const float *scale, __global const float *zero_point,
                            __global const double *gradient, __global const float *per_unit, qk_device_step s) {
    const int row = get_group_id(0), blocks = s.inputs / s.block;
    for (int k = get_local_id(0); k < s.inputs; k += GROUP) {
        const int i = row * s.inputs + k, of = row * blocks + k / s.block;
        const float g = (float)((double)s.factor * gradient[i]) * per_unit[row];
        const float q = rint(steps_of(real[i], scale[of])) + zero_point[of];
        real[i] -= adam_step(m + i, v + i, q >= s.lo && q <= s.hi ? g : 0, s);
        weight[i] = straight_weight(real[i], scale[of], zero_point[of], s);
    }
}

/* bias, m, v, per_unit (rows); sums as judge_outputs leaves them. */
__kernel void move_bias(__global float *bias, __global float *m, __global float *v, __global const double *sums,
                        __global const float *per_unit, int rows, qk_device_step s) {
    const int row = get_global_id(0);
    if (row >= rows) return;
    const float slope = (float)((double)s.factor * sums[row * 4 + 1]) * per_unit[row];
    bias[row] -= adam_step(m + row, v + row, slope, s);
}

/* ---- moments ----------------------------------------------------------------------------------- */

/* Chosen rows of a batch as columns of a panel (channels * taps, capacity). offsets (taps, count): of the tap in channel
 * 0, -1: padding. Dimensions: rows, lines. */
__kernel void cut_rows(__global float *panel, __global const void *tensor, __global const int *offsets, qk_cut c,
                       qk_input_kind kind) {
    const int row = get_global_id(0), line = get_global_id(1);
    if (row >= c.count) return;
    const int offset = offsets[line % c.taps * c.count + row];
    const ulong at = (ulong)(line / c.taps) * (ulong)c.channel_stride + (ulong)max(offset, 0);
    panel[(ulong)line * (ulong)c.capacity + (ulong)(c.column + row)] = offset < 0 ? 0 : input_at(tensor, at, kind);
}

/* to (groups, m, n) += a b', for lines of panels a (groups * m, capacity) and b (groups * n, capacity). Float32 sums of
 * DEPTH products, float64 beyond. Dimensions: columns, lines, groups. */
__kernel __attribute__((reqd_work_group_size(SIDE, SIDE, 1))) void
add_products(__global double *to, __global const float *a, __global const float *b, qk_panel_product p) {
    __local float as[DEPTH][TILE + 1], bs[DEPTH][TILE + 1];
    const int x = get_local_id(0), y = get_local_id(1), item = y * SIDE + x, group = get_group_id(2);
    const int column = get_group_id(0) * TILE, line = get_group_id(1) * TILE;
    if (p.is_lower && column >= line + TILE) return;
    double sums[2][2] = {{0, 0}, {0, 0}};
    a += (ulong)group * (ulong)p.m * (ulong)p.capacity;
    b += (ulong)group * (ulong)p.n * (ulong)p.capacity;
    for (int first = 0; first < p.used; first += DEPTH) {
        for (int e = item; e < TILE * DEPTH; e += SIDE * SIDE) {
            const int k = e % DEPTH, i = e / DEPTH;
            const bool has = first + k < p.used;
            as[k][i] = has && line + i < p.m ? a[(ulong)(line + i) * (ulong)p.capacity + (ulong)(first + k)] : 0;
            bs[k][i] = has && column + i < p.n ? b[(ulong)(column + i) * (ulong)p.capacity + (ulong)(first + k)] : 0;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        float sum00 = 0, sum01 = 0, sum10 = 0, sum11 = 0;
        for (int k = 0; k < DEPTH; k++) {
            const float a0 = as[k][y], a1 = as[k][y + SIDE], b0 = bs[k][x], b1 = bs[k][x + SIDE];
            sum00 = fma(a0, b0, sum00);
            sum01 = fma(a0, b1, sum01);
            sum10 = fma(a1, b0, sum10);
            sum11 = fma(a1, b1, sum11);
        }
        sums[0][0] += (double)sum00;
        sums[0][1] += (double)sum01;
        sums[1][0] += (double)sum10;
        sums[1][1] += (double)sum11;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    to += (ulong)group * (ulong)p.m * (ulong)p.n;
    for (int half_m = 0; half_m < 2; half_m++)
        for (int half_n = 0; half_n < 2; half_n++) {
            const int i = line + y + half_m * SIDE, j = column + x + half_n * SIDE;
            if (i < p.m && j < p.n) to[(ulong)i * (ulong)p.n + (ulong)j] += sums[half_m][half_n];
        }
}

/* to (lines, 2) += sum and sum of squares of the first `used` values of a line, of which a work-group takes one. */
__kernel void sum_lines(__global double *to, __global const float *x, int capacity, int used) {
    __local double shared[GROUP];
    const int line = get_group_id(0);
    double sum = 0, squares = 0;
    for (int i = get_local_id(0); i < used; i += GROUP) {
        const double value = x[(ulong)line * (ulong)capacity + (ulong)i];
        sum += value;
        squares += value * value;
    }
    sum = sum_of_group(sum, shared);
    squares = sum_of_group(squares, shared);
    if (get_local_id(0) != 0) return;
    to[2 * line] += sum;
    to[2 * line + 1] += squares;
}
