/* Refusing what cannot be computed with, by row and column. */
#ifndef OQ_MATH_CHECK_H
#define OQ_MATH_CHECK_H

#include "base/context.h"
#include "base/real.h"

/* OQ_NOT_FINITE names the first NaN or infinity of x [rows, width]. */
oq_code oq_check_finite(oq_context *context, const char *name, const oq_real *x, int64_t rows, int64_t width);
oq_code oq_check_finite_doubles(oq_context *context, const char *name, const double *x, int64_t rows,
                                int64_t width);
/* Finite, and at most half the largest number: x^ may lie h/2 outside x's range and must not overflow. */
oq_code oq_check_quantizable(oq_context *context, const char *name, const oq_real *x, int64_t rows, int64_t width);

#endif
