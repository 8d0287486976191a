#include "quant/integer_product.h"

#include "math/igemm.h"
#include "quant/byte_product.h"

bool oq_fits_signed_bytes(oq_quantizer weight)
{
    /* q - z of an asymmetric grid reaches from -(2^n - 1) to 2^n - 1, of a symmetric one from -2^(n-1). */
    return weight.bits <= 7 || (weight.bits == 8 && weight.symmetric);
}

bool oq_has_integer_product(oq_quantizer activation, oq_quantizer weight, int64_t in)
{
#ifdef OQ_DOUBLE
    (void)activation, (void)weight, (void)in;
    return false;
#else
    return activation.bits <= 8 && oq_fits_signed_bytes(weight) && in <= OQ_BYTE_PRODUCT_DEEPEST && oq_has_igemm();
#endif
}

oq_code oq_integer_product(oq_context *context, const oq_forms *x, const oq_forms *w, const oq_real *bias,
                           oq_real *y, int64_t rows, int64_t in, int64_t out)
{
    return oq_byte_product(context, &(oq_byte_product_args){.m = rows,
                                                            .n = out,
                                                            .k = in,
                                                            .a = x->codes,
                                                            .b = w->centred,
                                                            .a_most = x->most,
                                                            .b_most = w->most,
                                                            .a_scale = x->scale,
                                                            .b_scale = w->scale,
                                                            .a_zero = x->zero,
                                                            .b_sum = w->sum,
                                                            .bias = bias,
                                                            .y = y});
}
