#include "math/gemm.h"

#include <stdatomic.h>

#include "base/parallel.h"
#include "math/onednn.h"

/* C is cut into panels of at most this many rows and columns, the longer side
 * finer.  On one Zen 4 core oneDNN loses 1 to 5 % to panels of 256, 5 to 15 % to
 * panels of 128 (B transposed suffers most: each panel packs it anew). */
enum { FINE = 256, COARSE = 1024 };

/* Products of fewer multiplications than this (some 20 us) stay in one piece. */
static const int64_t SMALL = (int64_t)1 << 20;

typedef struct {
    const oq_gemm_args *args;
    int64_t rows, columns; /* of a panel */
    int64_t across;        /* panels side by side */
    atomic_int failure;    /* the oq_code of a panel that failed */
} panels;

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
    if (!use_onednn(args)) {
        oq_gemm_reference(args);
        return OQ_OK;
    }
    return oq_onednn_sgemm(args->transpose_a, args->transpose_b, args->m, args->n, args->k, (float)args->alpha,
                           (const float *)args->a, args->lda, (const float *)args->b, args->ldb, (float)args->beta,
                           (float *)args->c, args->ldc);
}

static void run_panel(void *user, int64_t item, int worker)
{
    (void)worker;
    panels *cut = user;
    const int64_t row = item / cut->across * cut->rows;
    const int64_t column = item % cut->across * cut->columns;
    oq_gemm_args part = *cut->args;
    part.m = part.m - row < cut->rows ? part.m - row : cut->rows;
    part.n = part.n - column < cut->columns ? part.n - column : cut->columns;
    part.a += part.transpose_a ? row : row * part.lda;
    part.b += part.transpose_b ? column * part.ldb : column;
    part.c += row * part.ldc + column;
    const oq_code code = oq_gemm_serial(&part);
    if (code != OQ_OK) atomic_store(&cut->failure, (int)code);
}

/* A power of two of equal pieces (so 2, 4, 8 threads share them evenly), each a
 * multiple of 16 long and at most `most`. */
static int64_t piece(int64_t length, int64_t most)
{
    int64_t pieces = 1;
    while (pieces * most < length) pieces *= 2;
    return ((length + pieces - 1) / pieces + 15) / 16 * 16;
}

static int64_t pieces_of(int64_t length, int64_t each) { return (length + each - 1) / each; }

oq_code oq_gemm(oq_context *context, const oq_gemm_args *args)
{
    if (args->m <= 0 || args->n <= 0) return OQ_OK;
    panels cut = {.args = args, .rows = args->m, .columns = args->n};
    if ((double)args->m * (double)args->n * (double)args->k >= (double)SMALL) {
        cut.rows = piece(args->m, args->m >= args->n ? FINE : COARSE);
        cut.columns = piece(args->n, args->m >= args->n ? COARSE : FINE);
    }
    cut.across = pieces_of(args->n, cut.columns);
    const int64_t count = pieces_of(args->m, cut.rows) * cut.across;
    oq_parallel_for(context->threads, count, run_panel, &cut);
    const oq_code code = (oq_code)atomic_load(&cut.failure);
    if (code == OQ_OK) return OQ_OK;
    return oq_fail(context, code, "oneDNN failed on a product of %lld x %lld by %lld x %lld", (long long)args->m,
                   (long long)args->k, (long long)args->k, (long long)args->n);
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
