/* The way back from the gradient of W^ through the quantizer, some rows at a time.  Where only clipping, offsets and
 * diagonal maps learn, each lot of rows is led back as soon as the product has made it: the gradient of the weight is
 * never there as a whole, and no memory holds it. */
#ifndef OQ_CALIBRATE_WEIGHT_TAKER_H
#define OQ_CALIBRATE_WEIGHT_TAKER_H

#include "calibrate/transformed.h"

/* Whether a linear's gradient is led back so: no stage before its quantizer is written, and learns from it. */
bool oq_is_taken(const oq_transformed *t, int linear);
/* What the block is to hand those gradients to. */
oq_weight_taker oq_taker(oq_transformed *t);

/* dw [count, in], gradient of rows of W^ from `first` on: the learnables' parts += theirs; dx, that of the last stage
 * before the quantizer, NULL where nobody wants it; it may be dw. */
oq_code oq_lead_back(oq_context *context, oq_transformed *t, int linear, int64_t first, int64_t count,
                     const oq_real *dw, oq_real *dx);

#endif
