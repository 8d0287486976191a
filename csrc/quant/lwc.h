/* Learnable Weight Clipping (OmniQuant, eq. 2): max <- sigma(gamma) max, min <- sigma(beta) min. */
#ifndef OQ_QUANT_LWC_H
#define OQ_QUANT_LWC_H

#include "quant/quantizer.h"

#define OQ_LWC_INIT 4.0      /* sigma(4) = 0.982 */
#define OQ_LWC_IDENTITY 40.0 /* sigma(40) rounds to 1 in float and to 1 - 4e-18 = 1 in double */

oq_real oq_sigmoid(oq_real x);

oq_range oq_lwc_forward(oq_range range, oq_real max_logit, oq_real min_logit);
/* d(range), d(logits) from d(clipped range); the logit gradients are added to. */
oq_range oq_lwc_backward(oq_range range, oq_real max_logit, oq_real min_logit, oq_range dclipped,
                         oq_real *dmax_logit, oq_real *dmin_logit);

#endif
