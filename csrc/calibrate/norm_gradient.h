/* The gradient of a norm's diagonal map from those of the weights behind the norm.
 *
 * h = g~ x^ + b~ is read by linears alone, y = h W^^T. Their gradients are there anyway, dW = dy^T h and
 * db = sum_t dy_t, so
 *
 *     sum_t dh_ti h_ti = sum_n W^_ni dW_ni          sum_t dh_ti = sum_n W^_ni db_n
 *
 * which spares a window the products dh = dy W^. Only where activations are not rounded, whose gradient
 * would pass between h and dh, and where nothing before the norm wants its own. */
#ifndef OQ_CALIBRATE_NORM_GRADIENT_H
#define OQ_CALIBRATE_NORM_GRADIENT_H

#include "calibrate/transformed.h"

/* Whether that is so for a norm of this block; its linears' gradients must have been created. */
bool oq_norm_learns_by_weights(const oq_transformed *t, int norm);
/* Add dw [count, H], gradient of a linear's rows of W^ from `first` on, to the first sum of the norm it reads. */
void oq_norm_take(const oq_context *context, const oq_transformed *t, int linear, int64_t first, int64_t count,
                  const oq_real *dw);
/* The norm's map and shift += their gradients; before those of weights that were not taken are led further back, in
 * place. */
oq_code oq_norm_backward_by_weights(oq_context *context, oq_transformed *t, oq_real *dtheta, int norm);

#endif
