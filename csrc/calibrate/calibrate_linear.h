/* A single linear layer of any network: find the clipping and the map of its input under which the quantized
 * layer gives what the layer gave,
 *   min  mean (Q_a((X - delta) A^-1) Q_w(W A^T)^T + W delta - X W^T)^2
 * by the maps, quantizers, optimiser, guard and loop of the blocks. */
#ifndef OQ_CALIBRATE_CALIBRATE_LINEAR_H
#define OQ_CALIBRATE_CALIBRATE_LINEAR_H

#include "calibrate/trainer.h"

typedef struct {
    int64_t rows, in, out;
    const oq_real *x;      /* [rows, in] */
    const oq_real *weight; /* [out, in] */
    const oq_real *bias;   /* [out] or NULL */
} oq_layer;

/* Caller's arrays; NULL where not wanted. */
typedef struct {
    uint8_t *codes, *zero_point; /* [out, in], [out, groups] */
    oq_real *scale;              /* [out, groups] */
    oq_real *weight;             /* [out, in], instead of codes when not quantized */
    oq_real *bias;               /* [out] b + W delta */
    oq_real *map, *map_inverse;  /* [in] or, of a dense map, [in, in] */
    oq_real *shift;              /* [in] */
    double *margins;             /* [in], dense map alone */
} oq_folded_layer;

/* options->map[OQ_SITE_NORM1] is the map of the input: none, diagonal or dense; batch_size counts rows. */
oq_code oq_calibrate_linear(oq_context *context, const oq_layer *layer, const oq_options *options,
                            const oq_hooks *hooks, oq_calibration_result *result, const oq_folded_layer *folded);

/* Loss of one set of learnables over all rows, and its gradient [total]: the very function the training descends,
 * for tests and for those with their own optimiser. */
oq_code oq_linear_loss(oq_context *context, const oq_layer *layer, const oq_options *options, const oq_real *theta,
                       int64_t epoch, double *loss, oq_real *dtheta);

#endif
