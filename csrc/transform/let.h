/* Learnable Equivalent Transformation (OmniQuant, eq. 3-5): the diagonal map, channel-wise scale s.
 * Initialised as SmoothQuant (eq. 4): s_j = max|X_j|^alpha / max|W_ij|^(1 - alpha). */
#ifndef OQ_TRANSFORM_LET_H
#define OQ_TRANSFORM_LET_H

#include "base/real.h"

#define OQ_LET_INIT_FLOOR 1e-5
#define OQ_LET_FLOOR 1e-2 /* |s| after each step, sign kept */

oq_real oq_let_init(double activation_max, double weight_max, double alpha);
/* |s_i| >= OQ_LET_FLOOR, sign kept; the gradient is the identity. */
void oq_let_floor(oq_real *s, int64_t count);

/* w [rows, width]: columns times s. In place. */
void oq_scale_columns(oq_real *w, const oq_real *s, int64_t rows, int64_t width);
/* ds [width] += column sums of dy * w, for y = w * s: in double, in row order. scratch [width]. */
void oq_scale_columns_backward(const oq_real *w, const oq_real *dy, double *ds, int64_t rows, int64_t width);
/* sum_j dy_j w_j, for y = r w. */
double oq_scale_row_backward(const oq_real *w, const oq_real *dy, int64_t width);

#endif
