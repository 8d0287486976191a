#include "quant/integer_product.h"

#include "math/gemm_panels.h"
#include "math/igemm.h"

/* Rows and columns taken at once: the integers between product and epilogue (256 KiB) stay in the cache. */
enum { STRIP = 256 };

typedef struct {
    const oq_forms *x, *w;
    const oq_real *bias;
    oq_real *y;
    int64_t in, out;
} job;

bool oq_has_integer_product(oq_quantizer activation, oq_quantizer weight, int64_t in)
{
#ifdef OQ_DOUBLE
    (void)activation, (void)weight, (void)in;
    return false;
#else
    /* q - z of an asymmetric grid reaches from -(2^n - 1) to 2^n - 1, of a symmetric one from -2^(n-1). */
    const bool fits = weight.bits <= 7 || (weight.bits == 8 && weight.symmetric);
    const bool sums_fit = in <= INT32_MAX / 2 / (255 * 128);
    return activation.bits <= 8 && fits && sums_fit && oq_has_igemm();
#endif
}

OQ_VECTORIZED static void scale_row(const int32_t *restrict sums, oq_real *restrict y, int64_t count,
                                    oq_real scale, int32_t zero, const oq_real *restrict scales,
                                    const int32_t *restrict weight_sums, const oq_real *restrict bias)
{
    for (int64_t i = 0; i < count; i++) y[i] = (oq_real)(sums[i] - zero * weight_sums[i]) * (scale * scales[i]);
    if (bias)
        for (int64_t i = 0; i < count; i++) y[i] += bias[i];
}

static oq_code run_strip(const job *j, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    int32_t sums[STRIP * STRIP];
    const oq_code code = oq_igemm_serial(&(oq_igemm_args){.m = rows,
                                                          .n = columns,
                                                          .k = j->in,
                                                          .a_most = j->x->most,
                                                          .b_most = j->w->most,
                                                          .a = j->x->codes + row * j->in,
                                                          .lda = j->in,
                                                          .b = j->w->centred + column * j->in,
                                                          .ldb = j->in,
                                                          .c = sums,
                                                          .ldc = columns});
    if (code != OQ_OK) return code;
    for (int64_t r = 0; r < rows; r++)
        scale_row(sums + r * columns, j->y + (row + r) * j->out + column, columns, j->x->scale[row + r],
                  j->x->zero[row + r], j->w->scale + column, j->w->sum + column,
                  j->bias ? j->bias + column : NULL);
    return OQ_OK;
}

static oq_code run_panel(const void *product, oq_panel panel)
{
    const int64_t bottom = panel.row + panel.rows, right = panel.column + panel.columns;
    for (int64_t column = panel.column; column < right; column += STRIP)
        for (int64_t row = panel.row; row < bottom; row += STRIP)
            OQ_TRY(run_strip(product, row, bottom - row < STRIP ? bottom - row : STRIP, column,
                             right - column < STRIP ? right - column : STRIP));
    return OQ_OK;
}

oq_code oq_integer_product(oq_context *context, const oq_forms *x, const oq_forms *w, const oq_real *bias,
                           oq_real *y, int64_t rows, int64_t in, int64_t out)
{
    const job j = {x, w, bias, y, in, out};
    return oq_over_panels(context, rows, out, in, run_panel, &j);
}
