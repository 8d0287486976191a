/* The product of fake-quantized activations and weights as an exact sum over integers:
 *
 *   y_to = h_t h_o (sum_i q_ti (q - z)_oi - z_t sum_i (q - z)_oi) + bias_o
 *
 * The same number as the product of the dequantized matrices, but for the rounding of its float sum. */
#ifndef OQ_QUANT_INTEGER_PRODUCT_H
#define OQ_QUANT_INTEGER_PRODUCT_H

#include "base/context.h"
#include "quant/forms.h"
#include "quant/quantizer.h"

/* Whether q - z of a grid is a signed byte. */
bool oq_fits_signed_bytes(oq_quantizer weight);
/* Whether this processor has the product, and codes of these quantizers, one grid a row, and their sums fit it. */
bool oq_has_integer_product(oq_quantizer activation, oq_quantizer weight, int64_t in);

/* Codes of a weight [out, in] with one grid a row. */
typedef struct {
    const uint8_t *codes, *zero; /* [out, in], [out] */
    const oq_real *scale;        /* [out] */
} oq_row_codes;
/* What the product takes of them, in the arena; nothing where some q - z is no signed byte. */
oq_code oq_forms_of_codes(oq_context *context, const oq_row_codes *w, int64_t out, int64_t in, oq_forms *to);

/* y [rows, out] from x: codes, scale, zero [rows, in]; w: centred, scale, sum [out, in]; bias [out] or NULL. */
oq_code oq_integer_product(oq_context *context, const oq_forms *x, const oq_forms *w, const oq_real *bias,
                           oq_real *y, int64_t rows, int64_t in, int64_t out);

#endif
