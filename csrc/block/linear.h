/* One linear of a block, its operands in whatever forms the run's products take. */
#ifndef OQ_BLOCK_LINEAR_H
#define OQ_BLOCK_LINEAR_H

#include "block/block.h"

/* y [T, out] = x W^T + b, x [T, in]. */
oq_code oq_block_linear_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                int which, const oq_forms *x, oq_real *y);
/* dW, db += from dy [T, out]; dx [T, in] (+)= dy W unless dx is NULL. */
oq_code oq_block_linear_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                 const oq_block_gradients *gradients, int which, const oq_forms *x,
                                 const oq_real *dy, oq_real *dx, bool accumulate);

#endif
