#include "quant/gradient_products.h"

#include "base/parallel.h"
#include "base/size.h"
#include "math/gemm_amx.h"
#include "math/igemm.h"
#include "math/lay_out.h"
#include "quant/byte_product.h"

enum { MIDDLE = 128 }; /* of bytes without a sign, whose highest bit it is */

bool oq_has_byte_gradients(int64_t length)
{
#ifdef OQ_DOUBLE
    (void)length;
    return false;
#else
    return oq_has_igemm() && length <= OQ_BYTE_PRODUCT_DEEPEST;
#endif
}

bool oq_prefers_byte_gradients(void) { return oq_has_byte_gradients(1) && !oq_igemm_amx_runs(); }

static oq_code fill(oq_context *context, int64_t count, int32_t value, int32_t **to)
{
    OQ_NEW(context, *to, count);
    for (int64_t i = 0; i < count; i++) (*to)[i] = value;
    return OQ_OK;
}

static oq_code ones(oq_context *context, int64_t count, const oq_real **to)
{
    oq_real *all;
    OQ_NEW(context, all, count);
    for (int64_t i = 0; i < count; i++) all[i] = 1;
    *to = all;
    return OQ_OK;
}

/* What codes become signed bytes by taking away, which for 128 is to turn the highest bit; q - z are such already. */
static uint8_t shift_of(const oq_forms *x) { return !x->centred && x->most > INT8_MAX ? MIDDLE : 0; }

/* Of the codes of x [rows, width], or of q - z. */
static oq_code columns_of_codes(oq_context *context, const oq_forms *x, int64_t rows, int64_t width,
                                oq_byte_columns *c)
{
    const uint8_t shift = shift_of(x);
    c->right = (oq_right){.layout = OQ_BY_ROWS,
                          .n = width,
                          .k = rows,
                          .bytes = x->centred ? x->centred : (const int8_t *)x->codes,
                          .flip = shift,
                          .most = shift ? MIDDLE : x->most};
    return ones(context, width, &c->scale);
}

/* Of the numbers of x [rows, width], rounded. */
static oq_code columns_of_numbers(oq_context *context, const oq_forms *x, int64_t rows, int64_t width,
                                  oq_byte_columns *c)
{
    oq_byte_vectors vectors;
    OQ_TRY(oq_byte_vectors_create(context, width, rows, 0, &vectors));
    vectors.by_rows = oq_igemm_packs(); /* and need not be transposed */
    oq_bytes_of_columns(context, &(oq_byte_source){x->real, x->half, rows, width}, NULL, &vectors);
    c->scale = vectors.scale;
    c->right = (oq_right){.layout = vectors.by_rows ? OQ_BY_ROWS : OQ_BY_COLUMNS,
                          .n = width,
                          .k = rows,
                          .bytes = (const int8_t *)vectors.codes,
                          .most = MIDDLE};
    return OQ_OK;
}

/* Of x in whichever form it has; for several products, or one. */
static oq_code columns_of(oq_context *context, const oq_forms *x, int64_t rows, int64_t width, bool often,
                          oq_byte_columns *c)
{
    if (x->centred || x->codes)
        OQ_TRY(columns_of_codes(context, x, rows, width, c));
    else
        OQ_TRY(columns_of_numbers(context, x, rows, width, c));
    return oq_lay_out(context, &c->right, often);
}

/* y [m, n] (+)= h (gradient [m, k] columns [k, n] - rest [m]). */
static oq_code multiply(oq_context *context, const oq_byte_vectors *gradient, const int32_t *rest,
                        const oq_byte_columns *by, oq_real *y, int64_t m, bool accumulate)
{
    int32_t *zero;
    OQ_TRY(fill(context, m, gradient->zero, &zero));
    return oq_byte_product(context, &(oq_byte_product_args){.m = m,
                                                            .a = gradient->codes,
                                                            .a_most = UINT8_MAX,
                                                            .b = &by->right,
                                                            .a_scale = gradient->scale,
                                                            .b_scale = by->scale,
                                                            .a_zero = zero,
                                                            .a_rest = rest,
                                                            .accumulate = accumulate,
                                                            .y = y});
}

oq_code oq_byte_gradient_of_input(oq_context *context, const oq_real *dy, const oq_forms *w, oq_real *dx,
                                  int64_t rows, int64_t in, int64_t out, bool accumulate)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_byte_columns by;
    oq_byte_vectors gradient;
    OQ_TRY(columns_of(context, w, out, in, false, &by));
    OQ_TRY(oq_byte_vectors_create(context, rows, out, MIDDLE, &gradient));
    oq_bytes_of_rows(context, dy, w->centred ? w->scale : NULL, rows, out, &gradient);
    OQ_TRY(multiply(context, &gradient, NULL, &by, dx, rows, accumulate));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

typedef struct {
    const oq_byte_vectors *gradient;
    const int32_t *zero;
    int32_t *rest;
    int64_t length;
    int shift;
} zero_job;

OQ_VECTORIZED static void add_zeros(const zero_job *j, int64_t vector)
{
    const uint8_t *codes = j->gradient->codes + vector * j->length;
    int32_t sum = 0;
    for (int64_t i = 0; i < j->length; i++) sum += (codes[i] - MIDDLE) * (j->zero[i] - j->shift);
    j->rest[vector] = sum;
}

static void run_zeros(void *user, int64_t vector, int worker)
{
    (void)worker;
    add_zeros(user, vector);
}

/* What the zero points of codes x [rows, in] add to a row of the sums, *rest [out]. */
static oq_code rest_of(oq_context *context, const oq_byte_vectors *gradient, const oq_forms *x, int shift, int64_t rows,
                       int64_t out, int32_t **rest)
{
    OQ_NEW(context, *rest, out);
    zero_job j = {gradient, x->zero, *rest, rows, shift};
    oq_parallel_for(context->threads, out, run_zeros, &j);
    return OQ_OK;
}

oq_code oq_byte_gradient_of_weight(oq_context *context, const oq_real *dy, const oq_forms *x, int64_t rows, int64_t in,
                                   int64_t out, oq_byte_gradient *of)
{
    *of = (oq_byte_gradient){.rows = rows};
    OQ_TRY(oq_byte_vectors_create(context, out, rows, MIDDLE, &of->gradient));
    oq_bytes_of_columns(context, &(oq_byte_source){dy, NULL, rows, out}, x->codes ? x->scale : NULL, &of->gradient);
    OQ_TRY(columns_of(context, x, rows, in, true, &of->x));
    return x->codes ? rest_of(context, &of->gradient, x, shift_of(x), rows, out, &of->rest) : OQ_OK;
}

oq_code oq_byte_gradient_rows(oq_context *context, const oq_byte_gradient *of, int64_t first, int64_t count,
                              oq_real *dw, bool accumulate)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_byte_vectors gradient = of->gradient;
    gradient.codes += first * of->rows;
    gradient.scale += first;
    OQ_TRY(multiply(context, &gradient, OQ_AT(of->rest, first), &of->x, dw, count, accumulate));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
