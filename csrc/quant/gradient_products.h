/* The backward products of a linear y = x W^^T with operands in bytes: the gradient of y is rounded along the sum, what
 * it meets are the codes where x and W^ have one grid a row, else the nearest bytes too.  A code's scale is no constant
 * of the sum; the gradient takes it before it is rounded. */
#ifndef OQ_QUANT_GRADIENT_PRODUCTS_H
#define OQ_QUANT_GRADIENT_PRODUCTS_H

#include "base/context.h"
#include "math/byte_vectors.h"
#include "math/right.h"
#include "quant/forms.h"

/* Whether this processor multiplies bytes, and sums of so many products fit. */
bool oq_has_byte_gradients(int64_t length);

/* Whether that is known to be faster here. On AMX, where bfloat16 takes an eighth of float's time and rounding the more
 * of the rest, nobody has measured it. */
bool oq_prefers_byte_gradients(void);

/* dx [rows, in] (+)= dy [rows, out] W^; w: centred and scale, or real, or half [out, in]. */
oq_code oq_byte_gradient_of_input(oq_context *context, const oq_real *dy, const oq_forms *w, oq_real *dx,
                                  int64_t rows, int64_t in, int64_t out, bool accumulate);

/* The right operand of either product, and the scales of its columns. */
typedef struct {
    oq_right right;
    const oq_real *scale;
} oq_byte_columns;

/* Both operands of dW [out, in] = dy^T x in bytes, in the arena. */
typedef struct {
    oq_byte_vectors gradient; /* [out, rows] */
    oq_byte_columns x;        /* [rows, in] */
    int32_t *rest;            /* [out] what the zero points of x add to the sums; NULL: nothing */
    int64_t rows;
} oq_byte_gradient;
/* x: codes, scale and zero, or real, or half [rows, in]; dy [rows, out]. */
oq_code oq_byte_gradient_of_weight(oq_context *context, const oq_real *dy, const oq_forms *x, int64_t rows, int64_t in,
                                   int64_t out, oq_byte_gradient *of);
/* dw [count, in] (+)= rows of dW from `first` on. */
oq_code oq_byte_gradient_rows(oq_context *context, const oq_byte_gradient *of, int64_t first, int64_t count,
                              oq_real *dw, bool accumulate);

#endif
