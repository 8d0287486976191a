/* Dense inverse in double, its backward, and condition numbers. */
#ifndef OQ_MATH_INVERSE_H
#define OQ_MATH_INVERSE_H

#include "base/context.h"
#include "base/real.h"

/* inverse [n, n] = a^-1.  pivot = false is for strictly diagonally dominant
 * matrices, where LU without pivoting is stable (growth <= 2); pivot = true for
 * any other.  OQ_SINGULAR names `what` when a pivot vanishes or the result is
 * not finite.  a and inverse must not overlap. */
oq_code oq_inverse(oq_context *context, const double *a, double *inverse, int64_t n, bool pivot, const char *what);

/* da [n, n] -= (inverse^T d_inverse) inverse^T: the gradient of A from that of its inverse. */
oq_code oq_inverse_backward(oq_context *context, const double *inverse, const double *d_inverse, double *da,
                            int64_t n);

/* Infinity norm (largest absolute row sum). */
double oq_norm_inf(const double *a, int64_t n);
/* ||a||_inf ||inverse||_inf */
double oq_condition_inf(const double *a, const double *inverse, int64_t n);

/* c [m, n] = op(a) op(b), all double, row-major, contiguous: plain, blocked and vectorised. */
oq_code oq_dgemm(oq_context *context, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                 const double *a, const double *b, double *c, bool accumulate);

#endif
