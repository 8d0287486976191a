#include "block/act_quant.h"

#include "math/bf16.h"

oq_code oq_act_quant_forward(oq_context *context, oq_quantizer quantizer, const oq_real *x, oq_real *x_hat,
                             oq_range *ranges, int64_t rows, int64_t width)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    const oq_groups groups = {rows, width, width, quantizer};
    return oq_fake_quantize_forward(context, &groups, (oq_clip){0}, x, x_hat, ranges);
}

oq_code oq_input_forms(oq_context *context, oq_quantizer quantizer, const oq_real *x, const oq_forms *forms,
                       oq_range *ranges, int64_t rows, int64_t width)
{
    if (oq_is_quantized(quantizer)) {
        const oq_groups groups = {rows, width, width, quantizer};
        return oq_quantize_forms(context, &groups, (oq_clip){0}, x, forms, ranges);
    }
    if (forms->half) oq_bf16_from_real(context, x, forms->half, rows * width);
    return OQ_OK;
}

oq_code oq_act_quant_backward(oq_context *context, oq_quantizer quantizer, const oq_real *x,
                              const oq_range *ranges, oq_real *d, int64_t rows, int64_t width)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    const oq_groups groups = {rows, width, width, quantizer};
    return oq_fake_quantize_backward(context, &groups, (oq_clip){0}, x, ranges, d, d, (oq_clip_gradients){0});
}
