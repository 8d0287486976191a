/* Cholesky's factor of a symmetric positive definite matrix and its inverse, in double. */
#ifndef OQ_MATH_CHOLESKY_H
#define OQ_MATH_CHOLESKY_H

#include <stdint.h>

#include "base/context.h"

/* a [n, n], of which the lower triangle is read, becomes L there with A = L L^T; above the diagonal it is left.
 * OQ_SINGULAR names `what` and the row whose pivot is not positive. */
oq_code oq_cholesky(oq_context *context, double *a, int64_t n, const char *what);

/* inverse [n, n] = L^-1, zeros above the diagonal; l and inverse must not overlap. */
void oq_lower_inverse(const oq_context *context, const double *l, double *inverse, int64_t n);

#endif
