#include "math/gemm.h"

#include "math/gemm_amx.h"
#include "math/gemm_panels.h"
#include "math/onednn.h"
#include "math/sgemm_avx2.h"

static bool use_onednn(const oq_gemm_args *args)
{
#ifdef OQ_DOUBLE
    (void)args;
    return false;
#else
    return oq_onednn_loaded() && args->k > 0;
#endif
}

oq_code oq_gemm_serial(const oq_gemm_args *args)
{
    if (args->m <= 0 || args->n <= 0) return OQ_OK;
    if (args->in_parts && oq_sgemm_amx_can(args)) return oq_sgemm_amx(args);
    if (oq_sgemm_avx2_pays(args)) return oq_sgemm_avx2(args);
    if (!use_onednn(args)) {
        oq_gemm_reference(args);
        return OQ_OK;
    }
    return oq_onednn_sgemm(args->transpose_a, args->transpose_b, args->m, args->n, args->k, (float)args->alpha,
                           (const float *)args->a, args->lda, (const float *)args->b, args->ldb, (float)args->beta,
                           (float *)args->c, args->ldc);
}

static oq_gemm_args part_of(const oq_gemm_args *product, oq_panel panel)
{
    oq_gemm_args part = *product;
    part.m = panel.rows;
    part.n = panel.columns;
    part.a += part.transpose_a ? panel.row : panel.row * part.lda;
    part.b += part.transpose_b ? panel.column * part.ldb : panel.column;
    part.c += panel.row * part.ldc + panel.column;
    return part;
}

static oq_code run_panel(const void *product, oq_panel panel)
{
    const oq_gemm_args part = part_of(product, panel);
    return oq_gemm_serial(&part);
}

/* Of a panel of few rows too: its sums must be those of the whole. */
static oq_code run_panel_on_avx2(const void *product, oq_panel panel)
{
    const oq_gemm_args part = part_of(product, panel);
    return oq_sgemm_avx2(&part);
}

static oq_code run_panel_in_parts(const void *product, oq_panel panel)
{
    const oq_gemm_args part = part_of(product, panel);
    return oq_sgemm_amx(&part);
}

oq_code oq_gemm(oq_context *context, const oq_gemm_args *args)
{
    if (context->in_parts && oq_sgemm_amx_can(args))
        return oq_over_threads(context, args->m, args->n, args->k, run_panel_in_parts, args);
    if (oq_sgemm_avx2_pays(args))
        return oq_over_threads(context, args->m, args->n, args->k, run_panel_on_avx2, args);
    return oq_over_panels(context, args->m, args->n, args->k, run_panel, args);
}

oq_code oq_linear_forward(oq_context *context, const oq_real *x, const oq_real *w, oq_real *y, int64_t rows,
                          int64_t in, int64_t out)
{
    return oq_gemm(context, &(oq_gemm_args){.transpose_b = true,
                                            .m = rows,
                                            .n = out,
                                            .k = in,
                                            .alpha = 1,
                                            .a = x,
                                            .lda = in,
                                            .b = w,
                                            .ldb = in,
                                            .c = y,
                                            .ldc = out});
}

oq_code oq_linear_backward_input(oq_context *context, const oq_real *dy, const oq_real *w, oq_real *dx,
                                 int64_t rows, int64_t in, int64_t out, bool accumulate)
{
    return oq_gemm(context, &(oq_gemm_args){.m = rows,
                                            .n = in,
                                            .k = out,
                                            .alpha = 1,
                                            .beta = accumulate ? 1 : 0,
                                            .a = dy,
                                            .lda = out,
                                            .b = w,
                                            .ldb = in,
                                            .c = dx,
                                            .ldc = in});
}

oq_code oq_linear_backward_weight(oq_context *context, const oq_real *dy, const oq_real *x, oq_real *dw,
                                  int64_t rows, int64_t in, int64_t out, bool accumulate)
{
    return oq_gemm(context, &(oq_gemm_args){.transpose_a = true,
                                            .m = out,
                                            .n = in,
                                            .k = rows,
                                            .alpha = 1,
                                            .beta = accumulate ? 1 : 0,
                                            .a = dy,
                                            .lda = out,
                                            .b = x,
                                            .ldb = in,
                                            .c = dw,
                                            .ldc = in});
}
