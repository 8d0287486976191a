#include "quant/integer_product.h"

#include "base/parallel.h"
#include "base/real.h"
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

typedef struct {
    const oq_row_codes *w;
    oq_forms *to;
    int32_t *most; /* [out] which no |q - z| of the row exceeds */
    int64_t in;
} centring;

OQ_VECTORIZED static void centre_row(const centring *c, int64_t row)
{
    const uint8_t *codes = c->w->codes + row * c->in;
    const int32_t zero = c->w->zero[row];
    int8_t *centred = c->to->centred + row * c->in;
    int32_t sum = 0, low = 0, high = 0;
    for (int64_t i = 0; i < c->in; i++) {
        const int32_t value = codes[i] - zero;
        centred[i] = (int8_t)value;
        sum += value;
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    c->to->sum[row] = sum;
    c->most[row] = -low > high ? -low : high;
}

static void run_row(void *user, int64_t row, int worker)
{
    (void)worker;
    centre_row(user, row);
}

oq_code oq_forms_of_codes(oq_context *context, const oq_row_codes *w, int64_t out, int64_t in, oq_forms *to)
{
    int32_t *most;
    *to = (oq_forms){.scale = (oq_real *)w->scale}; /* which products only read */
    OQ_NEW(context, most, out);
    OQ_NEW(context, to->centred, out * in);
    OQ_NEW(context, to->sum, out);
    centring c = {w, to, most, in};
    oq_parallel_for(context->threads, out, run_row, &c);
    for (int64_t row = 0; row < out; row++) to->most = most[row] > to->most ? most[row] : to->most;
    if (to->most > INT8_MAX) *to = (oq_forms){0};
    return OQ_OK;
}

oq_code oq_integer_product(oq_context *context, const oq_forms *x, const oq_forms *w, const oq_real *bias,
                           oq_real *y, int64_t rows, int64_t in, int64_t out)
{
    const oq_right b = {OQ_BY_COLUMNS, .n = out, .k = in, .bytes = w->centred, .most = w->most, .sum = w->sum};
    return oq_byte_product(context, &(oq_byte_product_args){.m = rows,
                                                            .a = x->codes,
                                                            .a_most = x->most,
                                                            .b = &b,
                                                            .a_scale = x->scale,
                                                            .b_scale = w->scale,
                                                            .a_zero = x->zero,
                                                            .bias = bias,
                                                            .y = y});
}
