#include "quant/byte_product.h"

#include "base/size.h"
#include "math/gemm_panels.h"
#include "math/igemm.h"
#include "math/igemm_avx512.h"
#include "math/sliver.h"

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

OQ_INLINE void write_row(const int32_t *restrict sums, oq_real *restrict y, int64_t count,
                                    const row_terms *t, bool accumulate)
{
    if (accumulate)
        for (int64_t i = 0; i < count; i++) y[i] += term(t, sums[i], i);
    else
        for (int64_t i = 0; i < count; i++) y[i] = term(t, sums[i], i);
    if (t->bias)
        for (int64_t i = 0; i < count; i++) y[i] += t->bias[i];
}

/* The row of y below some, from a column on, which is written next: it comes from far. */
OQ_INLINE void expect_row(const oq_byte_product_args *g, int64_t row, const oq_sums *of)
{
    enum { LINE = 16 }; /* floats of a line of the cache */
    if (row >= g->m) return;
    for (int64_t i = 0; i < of->columns; i += LINE) __builtin_prefetch(g->y + row * g->b->n + of->column + i, 1);
}

/* Some rows and columns of y from their sums [rows, ld]. */
OQ_VECTORIZED static void write_rows(const oq_byte_product_args *g, const oq_sums *of, int64_t ld)
{
    for (int64_t r = 0; r < of->rows; r++) {
        const int64_t row = of->row + r;
        const row_terms terms = {.scale = g->a_scale[row],
                                 .zero = g->a_zero[row],
                                 .rest = g->a_rest ? g->a_rest[row] : 0,
                                 .scales = g->b_scale + of->column,
                                 .bias = OQ_AT(g->bias, of->column),
                                 .b_sums = of->b_sums};
        write_row(of->sums + r * ld, g->y + row * g->b->n + of->column, of->columns, &terms, g->accumulate);
        expect_row(g, row + of->rows, of);
    }
}

/* ---- by slivers, or by strips ---------------------------------------------------- */

static void take_sums(const void *product, const oq_sums *sums) { write_rows(product, sums, OQ_SLIVER); }

static oq_code run_strip(const oq_byte_product_args *g, oq_sums of)
{
    int32_t sums[STRIP * STRIP];
    const int64_t k = g->b->k;
    OQ_TRY(oq_igemm_serial(&(oq_igemm_args){.m = of.rows,
                                            .n = of.columns,
                                            .k = k,
                                            .a_most = g->a_most,
                                            .b_most = g->b->most,
                                            .a = g->a + of.row * k,
                                            .lda = k,
                                            .b = g->b->bytes + of.column * k,
                                            .ldb = k,
                                            .c = sums,
                                            .ldc = of.columns}));
    of.sums = sums;
    of.b_sums = g->b->sum + of.column;
    write_rows(g, &of, of.columns);
    return OQ_OK;
}

static oq_code run_panel(const void *product, oq_panel panel)
{
    const int64_t bottom = panel.row + panel.rows, right = panel.column + panel.columns;
    for (int64_t column = panel.column; column < right; column += STRIP)
        for (int64_t row = panel.row; row < bottom; row += STRIP)
            OQ_TRY(run_strip(product, (oq_sums){.row = row,
                                                .rows = oq_least(STRIP, bottom - row),
                                                .column = column,
                                                .columns = oq_least(STRIP, right - column)}));
    return OQ_OK;
}

oq_code oq_byte_product(oq_context *context, const oq_byte_product_args *args)
{
    if (oq_igemm_packs())
        return oq_igemm_avx512(context, &(oq_igemm_avx512_args){args->m, args->a, args->b, take_sums, args});
    return oq_over_panels(context, args->m, args->b->n, args->b->k, run_panel, args);
}
