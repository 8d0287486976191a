/* The backward products of a linear y = x W^^T with operands in bytes: the gradient of y is rounded along the sum, what
 * it meets are the codes where x and W^ have one grid a row, else the nearest bytes too.  A code's scale is no constant
 * of the sum; the gradient takes it before it is rounded. */
#ifndef OQ_QUANT_GRADIENT_PRODUCTS_H
#define OQ_QUANT_GRADIENT_PRODUCTS_H

#include "base/context.h"
#include "quant/forms.h"

/* Whether this processor multiplies bytes, and sums of so many products fit. */
bool oq_has_byte_gradients(int64_t length);

/* Whether that is known to be faster here. On AMX, where bfloat16 takes an eighth of float's time and rounding the more
 * of the rest, nobody has measured it. */
bool oq_prefers_byte_gradients(void);

/* dx [rows, in] (+)= dy [rows, out] W^; w: centred and scale, or real, or half [out, in]. */
oq_code oq_byte_gradient_of_input(oq_context *context, const oq_real *dy, const oq_forms *w, oq_real *dx,
                                  int64_t rows, int64_t in, int64_t out, bool accumulate);
/* dw [out, in] (+)= dy^T x; x: codes, scale and zero, or real, or half [rows, in]. */
oq_code oq_byte_gradient_of_weight(oq_context *context, const oq_real *dy, const oq_forms *x, oq_real *dw,
                                   int64_t rows, int64_t in, int64_t out, bool accumulate);

#endif
