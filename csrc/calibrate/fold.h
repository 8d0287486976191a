/* Fold the learnables of a block into what is stored: codes with their grids, biases, norm gains, and the
 * inverse of an online map where there is one. */
#ifndef OQ_CALIBRATE_FOLD_H
#define OQ_CALIBRATE_FOLD_H

#include "calibrate/transformed.h"

/* Caller's arrays; NULL where the block has no such tensor. */
typedef struct {
    uint8_t *codes[OQ_LINEARS], *zero_point[OQ_LINEARS]; /* [out, in], [out, groups] */
    oq_real *scale[OQ_LINEARS];                          /* [out, groups] */
    oq_real *weight[OQ_LINEARS];                         /* [out, in], instead of codes when not quantized */
    oq_real *bias[OQ_LINEARS], *gain[OQ_NORMS], *norm_bias[OQ_NORMS];
    oq_real *map_inverse[OQ_INPUT_NORMS]; /* [H, H] */
    oq_real *left[OQ_INPUTS], *right[OQ_INPUTS], *clip[OQ_INPUTS];
} oq_folded;

oq_code oq_fold_block(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                      const oq_options *options, const oq_real *theta, const oq_folded *folded);

#endif
