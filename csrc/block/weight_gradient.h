/* The gradient of a linear's weight, dW = dy^T x: kept, or taken a few rows at a time while they are in the cache. */
#ifndef OQ_BLOCK_WEIGHT_GRADIENT_H
#define OQ_BLOCK_WEIGHT_GRADIENT_H

#include "block/linear.h"

/* Which form of the operands meets which. */
typedef enum {
    OQ_OF_REALS,  /* dy and x */
    OQ_OF_HALVES, /* both rounded to bfloat16 */
    OQ_OF_BYTES   /* both in bytes: quant/gradient_products.h */
} oq_operands;

typedef struct {
    oq_operands operands;
    int64_t T;
    const oq_real *dy;       /* [T, out] */
    const uint16_t *dy_half; /* the same, of halves */
    const oq_forms *x;       /* [T, in] */
} oq_weight_product;

/* dW of those rows, to where the gradients say; nothing where nobody wants it. */
oq_code oq_weight_gradient(oq_context *context, const oq_block_gradients *gradients, oq_linear_rows rows,
                           const oq_weight_product *product);

#endif
