/* LET's shift delta in the biases (OmniQuant, eq. 3): b~ = b + W delta at the consumers of a shifted input, and
 * minus delta at v, whose output is shifted.  A shift passes attention unchanged, its rows sum to 1. */
#ifndef OQ_CALIBRATE_SHIFT_H
#define OQ_CALIBRATE_SHIFT_H

#include "calibrate/transformed.h"

/* bias [out] = b + W delta_in - delta_out, in double. */
void oq_shift_bias_forward(const oq_transformed *t, const oq_real *theta, int linear, oq_real *bias);
/* dtheta's shifts += from dbias [out]. */
void oq_shift_bias_backward(const oq_transformed *t, oq_real *dtheta, int linear, const oq_real *dbias);

#endif
