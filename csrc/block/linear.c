#include "block/linear.h"

#include "math/bf16.h"
#include "math/gemm.h"
#include "math/vector.h"
#include "quant/integer_product.h"

static oq_code forward_bf16(oq_context *context, int64_t T, oq_linear_shape shape, const uint16_t *x,
                            const uint16_t *w, oq_real *y)
{
    return oq_bf16_gemm(context, &(oq_bf16_gemm_args){.transpose_b = true,
                                                      .m = T,
                                                      .n = shape.out,
                                                      .k = shape.in,
                                                      .a = x,
                                                      .lda = shape.in,
                                                      .b = w,
                                                      .ldb = shape.in,
                                                      .c = y,
                                                      .ldc = shape.out});
}

oq_code oq_block_linear_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                int which, const oq_forms *x, oq_real *y)
{
    const oq_linear_shape shape = oq_shape_of(run->spec, which);
    const oq_forms *w = &weights->forms[which];
    const oq_real *bias = weights->bias[which];
    const int64_t T = run->tokens;
    if (x->codes && w->centred) return oq_integer_product(context, x, w, bias, y, T, shape.in, shape.out);
    if (x->half && w->half)
        OQ_TRY(forward_bf16(context, T, shape, x->half, w->half, y));
    else
        OQ_TRY(oq_linear_forward(context, x->real, weights->weight[which], y, T, shape.in, shape.out));
    if (bias) oq_add_to_rows(y, bias, T, shape.out);
    return OQ_OK;
}

/* Both products take dy rounded once. */
static oq_code backward_bf16(oq_context *context, int64_t T, oq_linear_shape shape, const uint16_t *x,
                             const uint16_t *w, const oq_real *dy, oq_real *dw, bool fresh, oq_real *dx,
                             bool accumulate)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    uint16_t *dy_half;
    OQ_NEW(context, dy_half, T * shape.out);
    oq_bf16_from_real(context, dy, dy_half, T * shape.out);
    if (dw)
        OQ_TRY(oq_bf16_gemm(context, &(oq_bf16_gemm_args){.transpose_a = true,
                                                          .accumulate = !fresh,
                                                          .m = shape.out,
                                                          .n = shape.in,
                                                          .k = T,
                                                          .a = dy_half,
                                                          .lda = shape.out,
                                                          .b = x,
                                                          .ldb = shape.in,
                                                          .c = dw,
                                                          .ldc = shape.in}));
    if (dx)
        OQ_TRY(oq_bf16_gemm(context, &(oq_bf16_gemm_args){.accumulate = accumulate,
                                                          .m = T,
                                                          .n = shape.in,
                                                          .k = shape.out,
                                                          .a = dy_half,
                                                          .lda = shape.out,
                                                          .b = w,
                                                          .ldb = shape.in,
                                                          .c = dx,
                                                          .ldc = shape.in}));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_block_linear_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                 const oq_block_gradients *gradients, int which, const oq_forms *x,
                                 const oq_real *dy, oq_real *dx, bool accumulate)
{
    const oq_linear_shape shape = oq_shape_of(run->spec, which);
    const uint16_t *half = weights->forms[which].half;
    oq_real *dw = gradients->weight[which];
    const int64_t T = run->tokens;
    if (gradients->bias[which]) OQ_TRY(oq_column_sums(context, dy, gradients->bias[which], T, shape.out));
    if (x->half && half)
        return backward_bf16(context, T, shape, x->half, half, dy, dw, gradients->fresh, dx, accumulate);
    if (dw) OQ_TRY(oq_linear_backward_weight(context, dy, x->real, dw, T, shape.in, shape.out, !gradients->fresh));
    if (!dx) return OQ_OK;
    return oq_linear_backward_input(context, dy, weights->weight[which], dx, T, shape.in, shape.out, accumulate);
}
