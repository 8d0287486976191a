/* The products of a training step with nothing around them: what `omniquant bench` compares a step with. */
#ifndef OQ_QUANT_BARE_PRODUCT_H
#define OQ_QUANT_BARE_PRODUCT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/context.h"
#include "quant/products.h"

/* C [m, n] = op(A) op(B), k deep.  Integers, of so many bits, are taken as a linear's: A as it is, B transposed. */
typedef struct {
    oq_products kind;
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    int a_bits, b_bits;
    bool own; /* as a step multiplies here, integers up to the numbers they stand for, rather than oneDNN's bare one */
} oq_bare_product;

/* seconds [repeats] that it took on the context's threads; operands of ones, in the cache where they fit. */
oq_code oq_time_product(oq_context *context, const oq_bare_product *product, int64_t repeats, double *seconds);

#endif
