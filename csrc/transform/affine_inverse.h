/* The affine map together with its inverse, and the parameters' gradient from those of both: what someone with
 * a training loop of their own needs of AffineQuant. */
#ifndef OQ_TRANSFORM_AFFINE_INVERSE_H
#define OQ_TRANSFORM_AFFINE_INVERSE_H

#include "base/context.h"
#include "transform/affine.h"

/* a, inverse [blocks, n, n] from p; OQ_SINGULAR names the block that has no usable inverse. */
oq_code oq_affine_with_inverse(oq_context *context, const oq_affine *affine, const oq_real *p, double *a,
                               double *inverse);
/* dp [blocks, n, n] = the gradient of A (da) and, through -A^-T dA^-1 A^-T, of its inverse (dinverse), as the
 * parameters see it; either may be NULL. */
oq_code oq_affine_with_inverse_backward(oq_context *context, const oq_affine *affine, const oq_real *p,
                                        const double *da, const double *dinverse, oq_real *dp);

#endif
