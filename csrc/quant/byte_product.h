/* A product of bytes as a product of the numbers they stand for:
 *
 *   y_rc (+)= h_r h_c (sum_k a_rk b_ck - z_r sum_k b_ck - rest_r) + bias_c                                          */
#ifndef OQ_QUANT_BYTE_PRODUCT_H
#define OQ_QUANT_BYTE_PRODUCT_H

#include <stdint.h>

#include "base/context.h"
#include "base/real.h"
#include "math/right.h"

typedef struct {
    int64_t m;
    const uint8_t *a; /* [m, k], none exceeds a_most */
    int a_most;
    const oq_right *b;
    const oq_real *a_scale, *b_scale; /* h [m], [n] */
    const int32_t *a_zero;            /* z [m] */
    const int32_t *a_rest;            /* [m], or NULL: none */
    const oq_real *bias;              /* [n], or NULL */
    bool accumulate;
    oq_real *y; /* [m, n] */
} oq_byte_product_args;

/* The most k whose sums fit. */
enum { OQ_BYTE_PRODUCT_DEEPEST = INT32_MAX / 2 / (255 * 128) };

oq_code oq_byte_product(oq_context *context, const oq_byte_product_args *args);

#endif
