#include "runtime/linears.h"

#ifndef OQ_DOUBLE

#include "block/act_quant.h"

oq_code oq_round_rows(oq_context *context, oq_quantizer quantizer, const float *clip, float *x, int64_t rows,
                      int64_t width)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_range *ranges; /* for a backward pass, which there is none of */
    OQ_NEW(context, ranges, rows);
    OQ_TRY(oq_act_quant_forward(context, quantizer, clip, x, x, ranges, rows, width));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_run_linears(oq_context *context, const oq_runtime_model *model, const oq_runtime_block *block, int input,
                       float *x, int64_t rows, const oq_linear_output *outputs, int count)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    const oq_qlinear *made = NULL; /* whose integers `shared` are */
    oq_activations shared = {0};
    bool rounded = false;
    for (int i = 0; i < count; i++) {
        const oq_runtime_linear *linear = outputs[i].linear;
        if (!linear->packed) continue;
        if (!made || !oq_qlinear_shares(made, &linear->integers))
            OQ_TRY(oq_qlinear_quantize(context, &linear->integers, x, rows, &shared));
        made = &linear->integers;
        OQ_TRY(oq_qlinear_apply(context, made, &shared, outputs[i].y));
    }
    for (int i = 0; i < count; i++) { /* last, for they round x itself */
        const oq_runtime_linear *linear = outputs[i].linear;
        if (linear->packed) continue;
        if (!rounded) OQ_TRY(oq_round_rows(context, block->x, block->clip[input], x, rows, linear->floats.in));
        rounded = true;
        OQ_TRY(oq_dense_run(context, model->lanes, &linear->floats, x, rows, outputs[i].y));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

#else
typedef int oq_linears_is_float_only;
#endif
