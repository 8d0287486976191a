/* The products of a training step with nothing around them: what `omniquant bench` compares a step with. */
#ifndef OQ_QUANT_BARE_PRODUCT_H
#define OQ_QUANT_BARE_PRODUCT_H

#include <stdint.h>

#include "base/context.h"
#include "quant/products.h"

/* seconds [repeats] that C [m, n] = op(A) op(B), k deep, took on the context's threads; operands of ones, in the
 * cache where they fit.  Integers are taken as a linear's: A as it is, B transposed. */
oq_code oq_time_product(oq_context *context, oq_products kind, bool transpose_a, bool transpose_b, int64_t m,
                        int64_t n, int64_t k, int64_t repeats, double *seconds);

#endif
