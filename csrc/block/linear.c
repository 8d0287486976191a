#include "block/linear.h"

#include <string.h>

#include "base/size.h"
#include "block/weight_gradient.h"
#include "math/bf16.h"
#include "math/gemm.h"
#include "math/vector.h"
#include "quant/gradient_products.h"
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

oq_linear_rows oq_all_rows(const oq_block_spec *spec, int which)
{
    const oq_linear_shape shape = oq_shape_of(spec, which);
    return (oq_linear_rows){which, 0, shape.out, shape.in};
}

oq_linear_rows oq_rows_of_expert(const oq_block_spec *spec, int which, int64_t expert)
{
    const oq_linear_shape shape = oq_shape_of(spec, which);
    const int64_t out = shape.out / spec->experts.count;
    return (oq_linear_rows){which, expert * out, out, shape.in};
}

oq_code oq_forms_create(oq_context *context, const oq_block_run *run, int64_t rows, int64_t width, oq_forms *forms)
{
    *forms = (oq_forms){0};
    if (run->bf16) OQ_NEW(context, forms->half, rows * width);
    if (!oq_is_quantized(run->quantizers->x)) return OQ_OK;
    if (!run->bf16) OQ_NEW(context, forms->real, rows * width);
    if (!run->integer) return OQ_OK;
    OQ_NEW(context, forms->codes, rows * width);
    forms->most = (1 << run->quantizers->x.bits) - 1;
    OQ_NEW(context, forms->scale, rows);
    OQ_NEW(context, forms->zero, rows);
    return OQ_OK;
}

oq_code oq_input_create(oq_context *context, const oq_block_run *run, int64_t rows, int64_t width, oq_real **x,
                        oq_forms *forms, oq_range **ranges)
{
    *ranges = NULL;
    OQ_NEW(context, *x, rows * width);
    OQ_TRY(oq_forms_create(context, run, rows, width, forms));
    if (!oq_is_quantized(run->quantizers->x)) {
        forms->real = *x;
        return OQ_OK;
    }
    OQ_NEW(context, *ranges, rows);
    return OQ_OK;
}

oq_code oq_weights_to_bf16(oq_context *context, const oq_block_spec *spec, oq_block_weights *weights)
{
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(spec, i);
        if (!oq_has_linear(spec, i) || oq_is_router(i)) continue;
        OQ_NEW(context, weights->forms[i].half, shape.out * shape.in);
        oq_bf16_from_real(context, weights->weight[i], weights->forms[i].half, shape.out * shape.in);
    }
    return OQ_OK;
}

int64_t oq_outputs_summed(const oq_block_spec *spec, int which)
{
    return (oq_is_stacked(spec, which) ? oq_rows_of_expert(spec, which, 0) : oq_all_rows(spec, which)).out;
}

void oq_weights_take_byte_gradients(const oq_block_run *run, oq_block_weights *weights)
{
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!oq_has_linear(run->spec, i) || oq_is_router(i)) continue;
        oq_forms *forms = &weights->forms[i];
        forms->byte_gradients =
            oq_has_byte_gradients(run->tokens) && oq_has_byte_gradients(oq_outputs_summed(run->spec, i));
        if (!forms->half) forms->real = (oq_real *)weights->weight[i]; /* which products only read */
    }
}

oq_code oq_rows_forward(oq_context *context, const oq_block_weights *weights, oq_linear_rows rows, const oq_forms *x,
                        int64_t T, oq_real *y)
{
    const oq_linear_shape shape = {rows.out, rows.in};
    const oq_forms w = oq_forms_behind(&weights->forms[rows.which], rows.first, rows.in);
    const oq_real *bias = OQ_AT(weights->bias[rows.which], rows.first);
    if (T == 0) return OQ_OK;
    if (x->codes && w.sum) return oq_integer_product(context, x, &w, bias, y, T, rows.in, rows.out);
    if (x->half && w.half)
        OQ_TRY(forward_bf16(context, T, shape, x->half, w.half, y));
    else
        OQ_TRY(oq_linear_forward(context, x->real, weights->weight[rows.which] + rows.first * rows.in, y, T, rows.in,
                                 rows.out));
    if (bias) oq_add_to_rows(y, bias, T, rows.out);
    return OQ_OK;
}

oq_code oq_block_linear_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                int which, const oq_forms *x, oq_real *y)
{
    return oq_rows_forward(context, weights, oq_all_rows(run->spec, which), x, run->tokens, y);
}

/* Both products take dy rounded once. */
static oq_code backward_bf16(oq_context *context, const oq_block_gradients *gradients, oq_linear_rows rows, int64_t T,
                             const oq_forms *x, const uint16_t *w, const oq_real *dy, oq_real *dx, bool accumulate)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    uint16_t *dy_half;
    OQ_NEW(context, dy_half, T * rows.out);
    oq_bf16_from_real(context, dy, dy_half, T * rows.out);
    OQ_TRY(oq_weight_gradient(
        context, gradients, rows,
        &(oq_weight_product){.operands = OQ_OF_HALVES, .T = T, .dy_half = dy_half, .x = x}));
    if (dx)
        OQ_TRY(oq_bf16_gemm(context, &(oq_bf16_gemm_args){.accumulate = accumulate,
                                                          .m = T,
                                                          .n = rows.in,
                                                          .k = rows.out,
                                                          .a = dy_half,
                                                          .lda = rows.out,
                                                          .b = w,
                                                          .ldb = rows.in,
                                                          .c = dx,
                                                          .ldc = rows.in}));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code backward_bytes(oq_context *context, const oq_block_gradients *gradients, oq_linear_rows rows, int64_t T,
                              const oq_forms *x, const oq_forms *w, const oq_real *dy, oq_real *dx, bool accumulate)
{
    OQ_TRY(oq_weight_gradient(context, gradients, rows,
                              &(oq_weight_product){.operands = OQ_OF_BYTES, .T = T, .dy = dy, .x = x}));
    return dx ? oq_byte_gradient_of_input(context, dy, w, dx, T, rows.in, rows.out, accumulate) : OQ_OK;
}

oq_code oq_rows_backward(oq_context *context, const oq_block_weights *weights, const oq_block_gradients *gradients,
                         oq_linear_rows rows, const oq_forms *x, const oq_real *dy, int64_t T, oq_real *dx,
                         bool accumulate)
{
    const int64_t at = rows.first * rows.in;
    const oq_forms w = oq_forms_behind(&weights->forms[rows.which], rows.first, rows.in);
    oq_real *dw = OQ_AT(gradients->weight[rows.which], at), *db = OQ_AT(gradients->bias[rows.which], rows.first);
    if (T == 0) {
        if (dw && gradients->fresh) memset(dw, 0, sizeof *dw * (size_t)(rows.out * rows.in));
        return OQ_OK;
    }
    if (db) OQ_TRY(oq_column_sums(context, dy, db, T, rows.out));
    if (w.byte_gradients) return backward_bytes(context, gradients, rows, T, x, &w, dy, dx, accumulate);
    if (x->half && w.half) return backward_bf16(context, gradients, rows, T, x, w.half, dy, dx, accumulate);
    OQ_TRY(oq_weight_gradient(context, gradients, rows,
                              &(oq_weight_product){.operands = OQ_OF_REALS, .T = T, .dy = dy, .x = x}));
    if (!dx) return OQ_OK;
    return oq_linear_backward_input(context, dy, weights->weight[rows.which] + at, dx, T, rows.in, rows.out,
                                    accumulate);
}

oq_code oq_block_linear_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                 const oq_block_gradients *gradients, int which, const oq_forms *x,
                                 const oq_real *dy, oq_real *dx, bool accumulate)
{
    return oq_rows_backward(context, weights, gradients, oq_all_rows(run->spec, which), x, dy, run->tokens, dx,
                            accumulate);
}
