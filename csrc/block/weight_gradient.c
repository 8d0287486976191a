#include "block/weight_gradient.h"

#include "base/size.h"
#include "math/bf16.h"
#include "math/gemm.h"
#include "quant/gradient_products.h"

/* Rows taken at once: 128 of 4096 columns are 2 MiB.  Products of floats pack x anew for each lot, which more rows
 * have to pay for; those of bytes do so for every strip anyway. */
enum { BYTE_ROWS = 128, OTHER_ROWS = 1024 };

/* What rows of dW are made of. */
typedef struct {
    const oq_weight_product *product;
    oq_byte_gradient bytes; /* of bytes: both operands */
    int64_t in, out;
} source;

/* dw [count, in] (+)= rows of dW from `first` on. */
static oq_code rows_of(oq_context *context, const source *s, int64_t first, int64_t count, oq_real *dw, bool accumulate)
{
    const oq_weight_product *p = s->product;
    if (p->operands == OQ_OF_BYTES) return oq_byte_gradient_rows(context, &s->bytes, first, count, dw, accumulate);
    if (p->operands == OQ_OF_HALVES)
        return oq_bf16_gemm(context, &(oq_bf16_gemm_args){.transpose_a = true,
                                                          .accumulate = accumulate,
                                                          .m = count,
                                                          .n = s->in,
                                                          .k = p->T,
                                                          .a = p->dy_half + first,
                                                          .lda = s->out,
                                                          .b = p->x->half,
                                                          .ldb = s->in,
                                                          .c = dw,
                                                          .ldc = s->in});
    return oq_gemm(context, &(oq_gemm_args){.transpose_a = true,
                                            .m = count,
                                            .n = s->in,
                                            .k = p->T,
                                            .alpha = 1,
                                            .beta = accumulate ? 1 : 0,
                                            .a = p->dy + first,
                                            .lda = s->out,
                                            .b = p->x->real,
                                            .ldb = s->in,
                                            .c = dw,
                                            .ldc = s->in});
}

/* Hand all rows on, a lot at a time. */
static oq_code pass_on(oq_context *context, const source *s, const oq_weight_taker *taker, oq_linear_rows rows)
{
    const int64_t most = s->product->operands == OQ_OF_BYTES ? BYTE_ROWS : OTHER_ROWS;
    oq_real *dw;
    OQ_NEW(context, dw, oq_least(most, rows.out) * rows.in);
    for (int64_t first = 0; first < rows.out; first += most) {
        const int64_t count = oq_least(most, rows.out - first);
        OQ_TRY(rows_of(context, s, first, count, dw, false));
        OQ_TRY(taker->take(context, taker->user, rows.which, rows.first + first, count, dw));
    }
    return OQ_OK;
}

oq_code oq_weight_gradient(oq_context *context, const oq_block_gradients *gradients, oq_linear_rows rows,
                           const oq_weight_product *product)
{
    oq_real *kept = gradients->weight[rows.which];
    const oq_weight_taker *taker = &gradients->taker;
    source s = {.product = product, .in = rows.in, .out = rows.out};
    if (!kept && !taker->of[rows.which]) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    if (product->operands == OQ_OF_BYTES)
        OQ_TRY(oq_byte_gradient_of_weight(context, product->dy, product->x, product->T, rows.in, rows.out, &s.bytes));
    if (kept)
        OQ_TRY(rows_of(context, &s, 0, rows.out, kept + rows.first * rows.in, !gradients->fresh));
    else
        OQ_TRY(pass_on(context, &s, taker, rows));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
