/* LET on one linear of someone's own network: a scale and a shift move from its input into its weight and bias,
 *   x~ = (x - shift) / scale,   W~ = W scale,   b~ = b + W shift              (OmniQuant, eq. 3)
 * N rows of x, K inputs, M outputs. */
#ifndef OQ_TRANSFORM_LET_LINEAR_H
#define OQ_TRANSFORM_LET_LINEAR_H

#include "base/context.h"
#include "base/real.h"

typedef struct {
    int64_t rows, in, out;
    const oq_real *x;            /* [N, K] */
    const oq_real *weight;       /* [M, K] */
    const oq_real *scale;        /* [K], no zeros */
    const oq_real *shift, *bias; /* [K], [M]; each may be NULL */
} oq_let_linear;

/* bias [M] is written where there is a shift or a bias, else it may be NULL. */
oq_code oq_let_linear_forward(oq_context *context, const oq_let_linear *let, oq_real *x, oq_real *weight,
                              oq_real *bias);

/* Gradients of the transformed x, weight and bias (may be NULL), and of the originals; dshift is written where
 * there is a shift. */
typedef struct {
    const oq_real *dx_transformed, *dweight_transformed, *dbias_transformed;
    oq_real *dx, *dweight, *dscale, *dshift;
} oq_let_gradients;
oq_code oq_let_linear_backward(oq_context *context, const oq_let_linear *let, const oq_let_gradients *g);

#endif
