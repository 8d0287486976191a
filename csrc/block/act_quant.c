#include "block/act_quant.h"

#include <string.h>

#include "base/size.h"
#include "math/bf16.h"

/* The logits of one clipping for every row. */
static oq_code repeat(oq_context *context, const oq_real *logits, int64_t rows, oq_clip *clip)
{
    oq_real *max_logit, *min_logit;
    *clip = (oq_clip){0};
    if (!logits) return OQ_OK;
    OQ_NEW(context, max_logit, rows);
    OQ_NEW(context, min_logit, rows);
    for (int64_t r = 0; r < rows; r++) {
        max_logit[r] = logits[0];
        min_logit[r] = logits[1];
    }
    *clip = (oq_clip){.max_logit = max_logit, .min_logit = min_logit};
    return OQ_OK;
}

oq_code oq_act_quant_forward(oq_context *context, oq_quantizer quantizer, const oq_real *clip, const oq_real *x,
                             oq_real *x_hat, oq_range *ranges, int64_t rows, int64_t width)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    return oq_input_forms(context, quantizer, clip, x, &(oq_forms){.real = x_hat}, ranges, rows, width);
}

oq_code oq_input_forms(oq_context *context, oq_quantizer quantizer, const oq_real *clip, const oq_real *x,
                       const oq_forms *forms, oq_range *ranges, int64_t rows, int64_t width)
{
    if (oq_is_quantized(quantizer)) {
        const oq_groups groups = {rows, width, width, quantizer};
        const oq_mark mark = oq_arena_mark(context->arena);
        oq_clip logits;
        OQ_TRY(repeat(context, clip, rows, &logits));
        OQ_TRY(oq_quantize_forms(context, &groups, logits, x, forms, ranges));
        oq_arena_rewind(context->arena, mark);
        return OQ_OK;
    }
    if (forms->half) oq_bf16_from_real(context, x, forms->half, rows * width);
    return OQ_OK;
}

oq_code oq_act_quant_backward(oq_context *context, oq_quantizer quantizer, const oq_real *clip, const oq_real *x,
                              const oq_range *ranges, oq_real *d, oq_real *dclip, int64_t rows, int64_t width)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    const oq_groups groups = {rows, width, width, quantizer};
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_clip logits;
    oq_clip_gradients of_rows = {0};
    double sums[2] = {0, 0}; /* in the order of the rows */
    OQ_TRY(repeat(context, clip, rows, &logits));
    if (clip) {
        OQ_NEW_ZERO(context, of_rows.max_logit, rows);
        OQ_NEW_ZERO(context, of_rows.min_logit, rows);
    }
    OQ_TRY(oq_fake_quantize_backward(context, &groups, logits, x, ranges, d, d, of_rows));
    for (int64_t r = 0; clip && r < rows; r++) {
        sums[0] += (double)of_rows.max_logit[r];
        sums[1] += (double)of_rows.min_logit[r];
    }
    for (int i = 0; dclip && i < 2; i++) dclip[i] += (oq_real)sums[i];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* ---- keys and values ------------------------------------------------------- */

/* Rows of one text, sink tokens before the others. */
typedef struct {
    int64_t sinks, others, width;
} text_rows;

static text_rows rows_of(const oq_block_run *run, int64_t shared, int64_t length)
{
    const int64_t heads = run->spec->kv_heads, most = run->quantizers->sink_tokens;
    const int64_t sinks = oq_least(shared < most ? most - shared : 0, length);
    return (text_rows){sinks * heads, (length - sinks) * heads, run->spec->head_dim};
}

oq_code oq_kv_quant_forward(oq_context *context, const oq_block_run *run, oq_quantizer quantizer, const oq_real *x,
                            oq_real *x_hat, oq_range *ranges)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    for (int64_t i = 0; i < oq_texts(run); i++) {
        const text_rows rows = rows_of(run, oq_text_shared(run, i), oq_text_length(run, i));
        const int64_t count = rows.sinks * rows.width;
        memcpy(x_hat, x, sizeof *x * (size_t)count);
        OQ_TRY(oq_act_quant_forward(context, quantizer, NULL, x + count, x_hat + count, ranges + rows.sinks,
                                    rows.others, rows.width));
        x += count + rows.others * rows.width;
        x_hat += count + rows.others * rows.width;
        ranges += rows.sinks + rows.others;
    }
    return OQ_OK;
}

oq_code oq_kv_quant_backward(oq_context *context, const oq_block_run *run, oq_quantizer quantizer, const oq_real *x,
                             const oq_range *ranges, oq_real *d)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    const text_rows rows = rows_of(run, 0, run->tokens);
    const int64_t count = rows.sinks * rows.width;
    return oq_act_quant_backward(context, quantizer, NULL, x + count, ranges + rows.sinks, d + count, NULL,
                                 rows.others, rows.width);
}
