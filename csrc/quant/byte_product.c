#include "quant/byte_product.h"

#include "base/size.h"
#include "math/gemm_panels.h"
#include "math/igemm.h"

/* Rows and columns taken at once: the integers between product and epilogue (256 KiB) stay in the cache. */
enum { STRIP = 256 };

/* Factors and offsets of one row, those of its columns from some on. */
typedef struct {
    oq_real scale;
    int32_t zero, rest;
    const oq_real *scales, *bias;
    const int32_t *b_sums;
} row_terms;

OQ_INLINE oq_real term(const row_terms *t, int32_t sum, int64_t i)
{
    return (oq_real)(sum - t->zero * t->b_sums[i] - t->rest) * (t->scale * t->scales[i]);
}

OQ_VECTORIZED static void write_row(const int32_t *restrict sums, oq_real *restrict y, int64_t count,
                                    const row_terms *t, bool accumulate)
{
    if (accumulate)
        for (int64_t i = 0; i < count; i++) y[i] += term(t, sums[i], i);
    else
        for (int64_t i = 0; i < count; i++) y[i] = term(t, sums[i], i);
    if (t->bias)
        for (int64_t i = 0; i < count; i++) y[i] += t->bias[i];
}

static oq_code run_strip(const oq_byte_product_args *g, int64_t row, int64_t rows, int64_t column, int64_t columns)
{
    int32_t sums[STRIP * STRIP];
    const oq_code code = oq_igemm_serial(&(oq_igemm_args){.m = rows,
                                                          .n = columns,
                                                          .k = g->k,
                                                          .a_most = g->a_most,
                                                          .b_most = g->b_most,
                                                          .a = g->a + row * g->k,
                                                          .lda = g->k,
                                                          .b = g->b + column * g->k,
                                                          .ldb = g->k,
                                                          .c = sums,
                                                          .ldc = columns});
    if (code != OQ_OK) return code;
    for (int64_t r = 0; r < rows; r++) {
        const row_terms terms = {.scale = g->a_scale[row + r],
                                 .zero = g->a_zero[row + r],
                                 .rest = g->a_rest ? g->a_rest[row + r] : 0,
                                 .scales = g->b_scale + column,
                                 .bias = g->bias ? g->bias + column : NULL,
                                 .b_sums = g->b_sum + column};
        write_row(sums + r * columns, g->y + (row + r) * g->n + column, columns, &terms, g->accumulate);
    }
    return OQ_OK;
}

static oq_code run_panel(const void *product, oq_panel panel)
{
    const int64_t bottom = panel.row + panel.rows, right = panel.column + panel.columns;
    for (int64_t column = panel.column; column < right; column += STRIP)
        for (int64_t row = panel.row; row < bottom; row += STRIP)
            OQ_TRY(run_strip(product, row, oq_least(STRIP, bottom - row), column, oq_least(STRIP, right - column)));
    return OQ_OK;
}

oq_code oq_byte_product(oq_context *context, const oq_byte_product_args *args)
{
    return oq_over_panels(context, args->m, args->n, args->k, run_panel, args);
}
