/* Small row-wise helpers. */
#ifndef OQ_MATH_VECTOR_H
#define OQ_MATH_VECTOR_H

#include "base/context.h"
#include "base/real.h"

void oq_add(oq_real *to, const oq_real *x, int64_t count); /* to += x */
void oq_scale(oq_real *x, oq_real factor, int64_t count);   /* x *= factor */
void oq_add_to_rows(oq_real *rows, const oq_real *bias, int64_t count,
                    int64_t width); /* rows [count, width] += bias */
/* sums [width] += column sums of x [rows, width], in double and in row order. */
oq_code oq_column_sums(oq_context *context, const oq_real *x, oq_real *sums, int64_t rows, int64_t width);
/* The first value that is not finite, or -1. */
int64_t oq_find_not_finite(const oq_real *x, int64_t count);

/* x [count] = cap tanh(x / cap); cap 0: it stays. */
void oq_cap(double cap, oq_real *x, int64_t count);

#endif
