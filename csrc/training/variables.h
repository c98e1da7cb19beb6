/* What the steps of a gradient loop move: a variable for each weight, with Adam's moments of it, and the bias.
 *
 * Each output channel is a problem of its own (but for softmax), and so the loss of channel r is taken in units of
 * U_r = E[scale_r^2 x^2] E[f'^2], about what it costs to move one weight by one step; f' is the derivative of what
 * stands between the layer's output and the loss. Then neither Adam nor AdaRound's regulariser depends on
 * the scale of activations or weights, nor on the number of weights (docs/numerics.md). */
#ifndef QK_VARIABLES_H
#define QK_VARIABLES_H

#include "kernels/kernels.h"
#include "training/training_problem.h"

/* What changes from step to step. */
typedef struct {
    qk_adam adam;
    float penalty, beta; /* AdaRound's regulariser: its factor and its exponent */
    bool counts;         /* for early stop */
} qk_step;

typedef struct qk_variables qk_variables;

/* How a published loop lets a weight move: adaround.c, adaquant.c. */
typedef struct {
    bool steps_bias;            /* with the weights; else the bias is fitted in the end */
    qk_rounding_range rounding; /* the integers that a weight may become */
    /* Sets all variables from the float weight that the start was quantized from. */
    void (*begin)(qk_variables *v);
    /* The step number it, counted from 0: what it does beside Adam. */
    void (*schedule)(const qk_gradient_options *options, int64_t it, qk_step *step);
    /* Sets the layer's n weights from `at` on, which share a scale, from their variables. */
    void (*weigh)(qk_variables *v, int64_t at, size_t n);
    /* A step of these variables, and their weights; gradient (n). Returns the sum of AdaRound's regulariser. */
    double (*move)(qk_variables *v, int64_t at, size_t n, const float *gradient);
    /* The integer that a variable stands for, which may lie outside of the grid. */
    double (*integer)(const qk_variables *v, int64_t at);
} qk_loop_rules;

extern const qk_loop_rules qk_adaround, qk_adaquant;

struct qk_variables {
    const qk_training_problem *problem;
    const qk_loop_rules *rules;
    qk_float_layer *layer;   /* the bias of the layer is its own variable */
    float *variable, *m, *v; /* (rows, K): Adam's first and second moments */
    float *base, *sigmoid;   /* (rows, K), of AdaRound alone: floor(w / scale) + zp; of the variables */
    float *bias_m, *bias_v;  /* (rows) */
    /* (rows, K), (rows): the variables that the last loss of a window of early stop was found with, */
    float *held, *held_bias; /* of the present one */
    float *best, *best_bias; /* of the best one, */
    bool has_best;           /* if there is one */
    float *per_unit;         /* (rows): 1 / U */
    double *regulariser;     /* (rows): the sum before the last step */
    qk_step step;            /* the present one */
    float *gradient;         /* (rows, K): of the present step */
};

/* The layer computes with the variables as they begin. qk_variables_destroy after a failure, too. */
qk_status qk_variables_init(qk_variables *v, const qk_training_problem *p, qk_float_layer *layer);
void qk_variables_destroy(qk_variables *v);
/* Sets the unit of each output. input_power (groups * K): mean square of each input; slope_power (rows): of f'. */
void qk_variables_set_units(qk_variables *v, const double *input_power, const double *slope_power);

/* Sets the layer's weights from the variables. */
void qk_weigh_variables(qk_variables *v);
/* Step number it. gradient (rows, K) and slope (rows) are of the loss by the weight and by the bias; they are scaled to
 * units. slope NULL: the bias stays. */
void qk_move_variables(qk_variables *v, int64_t it, float *gradient, float *slope);
/* What early stop watches: the loss in units, for AdaRound with the regulariser. */
double qk_watched_loss(const qk_variables *v, double reconstruction);
/* Copies the variables, before a step moves them. */
void qk_hold_variables(qk_variables *v);
/* The values that were held are the best so far. */
void qk_keep_held_variables(qk_variables *v);
/* Goes back to those that were kept, if some were. */
void qk_use_best_variables(qk_variables *v);
/* weight_q (rows, K): what the variables round to, on the grid. */
void qk_round_variables(const qk_variables *v, int32_t *weight_q);

#endif
