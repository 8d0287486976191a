#include "quant/lwc.h"

oq_real oq_sigmoid(oq_real x) { return (oq_real)(1.0 / (1.0 + exp(-(double)x))); }

oq_range oq_lwc_forward(oq_range range, oq_real max_logit, oq_real min_logit)
{
    return (oq_range){.lo = oq_sigmoid(min_logit) * range.lo, .hi = oq_sigmoid(max_logit) * range.hi};
}

oq_range oq_lwc_backward(oq_range range, oq_real max_logit, oq_real min_logit, oq_range dclipped,
                         oq_real *dmax_logit, oq_real *dmin_logit)
{
    const oq_real shrink_hi = oq_sigmoid(max_logit), shrink_lo = oq_sigmoid(min_logit);
    *dmax_logit += shrink_hi * (1 - shrink_hi) * range.hi * dclipped.hi;
    *dmin_logit += shrink_lo * (1 - shrink_lo) * range.lo * dclipped.lo;
    return (oq_range){.lo = shrink_lo * dclipped.lo, .hi = shrink_hi * dclipped.hi};
}
