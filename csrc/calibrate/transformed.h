/* A block under its learnables: maps, transformed weights and biases, fake-quantized weights, and the
 * way back from their gradients to the learnables'.
 *
 *   W --columns map--> --rows map--> --Kronecker map--> W~ --LWC quantizer--> W^      one linear
 *
 * An online rotation of a linear's input stands behind its columns' map.  Diagonal maps are applied by the quantizer,
 * row by row.
 *
 *   g --/ s--> g~                                                     a norm with a diagonal map      */
#ifndef OQ_CALIBRATE_TRANSFORMED_H
#define OQ_CALIBRATE_TRANSFORMED_H

#include "calibrate/learnables.h"
#include "quant/fake_quantize.h"

typedef struct {
    const oq_block_spec *spec;
    const oq_options *options;
    const oq_block_weights *original;
    const oq_learnables *list;
    oq_map map[OQ_SITES];
    oq_real *unrotated[OQ_LINEARS]; /* W T where a map meets an input that is rotated behind it; else NULL */
    /* NULL where a stage changes nothing; see oq_staged_weight. */
    oq_real *after_columns[OQ_LINEARS], *after_rows[OQ_LINEARS], *after_input[OQ_LINEARS];
    oq_real *column_factors[OQ_LINEARS], *row_factors[OQ_LINEARS]; /* [in], [out] of maps the quantizer applies */
    oq_forms quantized[OQ_LINEARS]; /* W^ in the forms the products take; none where weights stay float */
    oq_range *ranges[OQ_LINEARS];
    oq_real *bias_before_rows[OQ_LINEARS], *bias[OQ_LINEARS];
    oq_real *gain[OQ_INPUT_NORMS], *norm_bias[OQ_INPUT_NORMS];
    /* Gradients of W^ and b~; NULL where nothing learns, and of a W^ whose gradient is taken in passing. */
    oq_real *dweight[OQ_LINEARS], *dbias[OQ_LINEARS];
    bool taken[OQ_LINEARS]; /* see weight_taker.h */
    double *dcolumn_factors[OQ_LINEARS], *drow_factors[OQ_LINEARS];
    oq_real *dgain[OQ_INPUT_NORMS], *dnorm_bias[OQ_INPUT_NORMS];
    bool by_weights[OQ_INPUT_NORMS];       /* the norm's map learns from those of W^ and b~: norm_gradient.h */
    double *along_weights[OQ_INPUT_NORMS]; /* [H] sum_n W^_ni dW_ni of its linears; NULL: it does not */
    const oq_real *lac[OQ_INPUTS]; /* [2] logits, a part of theta; NULL: activations are not clipped */
    oq_real dlac[OQ_INPUTS][2];
    bool fresh; /* no window has been backward yet: the weights' gradients are not zeroed but overwritten */
    const oq_real *theta; /* what was applied last */
    oq_real *dtheta;      /* what takes gradients in passing */
} oq_transformed;

oq_code oq_transformed_create(oq_context *context, oq_transformed *t, const oq_block_spec *spec,
                              const oq_options *options, const oq_block_weights *original,
                              const oq_learnables *list);
/* Whether a linear's forward product runs over integers. */
bool oq_has_integer_linear(const oq_block_spec *spec, const oq_options *options, int linear);
/* Apply the learnables theta under a mask; zeroes the gradients. */
oq_code oq_transformed_forward(oq_context *context, oq_transformed *t, const oq_real *theta, int64_t epoch);
/* dtheta += from the gradients gathered by oq_block_backward, but those it has taken in passing. */
oq_code oq_transformed_backward(oq_context *context, oq_transformed *t, oq_real *dtheta);

/* Views for the block. */
oq_block_weights oq_transformed_weights(const oq_transformed *t);
/* dtheta: += what is taken in passing. */
oq_block_gradients oq_transformed_gradients(oq_transformed *t, oq_real *dtheta);
/* W of a linear against its input as a map sees it, before the rotation. */
const oq_real *oq_unrotated_weight(const oq_transformed *t, int linear);
/* What a linear's quantizer reads, and with what it reads it. */
const oq_real *oq_staged_weight(const oq_transformed *t, int linear);
oq_clip oq_weight_clip(const oq_transformed *t, int linear, const oq_real *theta);
/* W~ of a linear: transformed, not yet quantized; in the arena where it is not written anyway. */
oq_code oq_transformed_weight(oq_context *context, const oq_transformed *t, int linear, const oq_real **w);
oq_groups oq_weight_groups(const oq_block_spec *spec, const oq_options *options, int linear);

#endif
