/* The Gram matrix of each sample's inputs, and their products with its errors: all that a quadratic loss needs of it.
 */
#ifndef QK_SAMPLE_GRAMS_H
#define QK_SAMPLE_GRAMS_H

#include <pthread.h>

#include "loss/reconstruction.h"
#include "moments/quadratic.h"

typedef struct {
    const qk_reconstruction *on;
    bool with_bias;
    int64_t inputs, outputs; /* per group: K, with the bias K + 1, the last always 1; O */
    int64_t count;           /* samples that were added */
    int64_t *place;          /* (samples of the data): where among those */
    float *weight, *bias;    /* (rows, K), (rows): the reference */
    float *products;         /* (samples, groups, inputs + outputs, inputs): X X', below it R X' */
    double *squares;         /* (samples, rows): |R|^2 */
    double *target;          /* (samples, 2, rows): sums of Y, of Y^2 */
    float *scratch;          /* (threads, scratch_size) */
    int64_t scratch_size;
    bool as_bytes;    /* the samples are, and stand for the same values: */
    qk_affine affine; /* of them, then */
    int64_t columns;
    uint8_t *bytes; /* (threads, K, columns): scratch */
    double *exact;  /* (threads, K + 1, K): of a sample's group the lower triangle of X (X - 128)', then X; scratch */
    double *sums;   /* (groups, K + 1, K): the same of all samples */
    pthread_mutex_t lock; /* of sums */
} qk_sample_grams;

/* Room for so many samples. R are the errors of weight (rows, K) and bias (rows), which are copied. `on` must outlive
 * it. qk_sample_grams_destroy after a failure, too. */
qk_status qk_sample_grams_init(qk_sample_grams *g, const qk_reconstruction *on, const float *weight, const float *bias,
                               bool with_bias, int64_t samples);
void qk_sample_grams_destroy(qk_sample_grams *g);
/* The next samples, indices into the data. */
void qk_sample_grams_add(qk_sample_grams *g, const int64_t *samples, int64_t count);

/* Floats that one group of a sample takes in products. */
int64_t qk_sample_gram_size(const qk_sample_grams *g);

/* Centred moments of all samples that were added, where those are bytes: of X exact. qk_quadratic_destroy after a
 * failure, too. */
qk_status qk_sample_grams_moments(const qk_sample_grams *g, qk_quadratic *q);

#endif
