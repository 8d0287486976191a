/* Learnable Weight Clipping (OmniQuant, eq. 2): max <- sigma(gamma) max, min <- sigma(beta) min. */
#ifndef OQ_QUANT_LWC_H
#define OQ_QUANT_LWC_H

#include "quant/quantizer.h"

#define OQ_LWC_INIT 4.0      /* sigma(4) = 0.982 */
#define OQ_LWC_IDENTITY 40.0 /* sigma(40) rounds to 1 in float and to 1 - 4e-18 = 1 in double */

oq_real oq_sigmoid(oq_real x);
/* The grid that searched clipping is the best of: shares 1, 0.95 .. 0.55 of a range. */
enum { OQ_LWC_SHARES = 10 };
static inline double oq_lwc_share(int k) { return 1 - 0.05 * k; }
/* The logit that keeps a share below 1. */
static inline oq_real oq_lwc_logit(double share) { return (oq_real)log(share / (1 - share)); }

oq_range oq_lwc_forward(oq_range range, oq_real max_logit, oq_real min_logit);
/* d(range), d(logits) from d(clipped range); the logit gradients are added to. */
oq_range oq_lwc_backward(oq_range range, oq_real max_logit, oq_real min_logit, oq_range dclipped,
                         oq_real *dmax_logit, oq_real *dmin_logit);

#endif
