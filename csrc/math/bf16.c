#include "math/bf16.h"

#include "base/parallel.h"
#include "math/gemm_amx.h"
#include "math/gemm_panels.h"
#include "math/onednn.h"
#include "math/vector.h"

#define CHUNK 16384

typedef struct {
    const oq_real *x;
    uint16_t *to;
    int64_t count;
} job;

OQ_VECTORIZED void oq_bf16_round(const oq_real *restrict x, uint16_t *restrict to, int64_t count)
{
    for (int64_t i = 0; i < count; i++) to[i] = oq_bf16_of(x[i]);
}

static void round_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * CHUNK, left = j->count - begin;
    (void)worker;
    oq_bf16_round(j->x + begin, j->to + begin, left < CHUNK ? left : CHUNK);
}

void oq_bf16_from_real(const oq_context *context, const oq_real *x, uint16_t *to, int64_t count)
{
    const job j = {x, to, count};
    oq_parallel_for(context->threads, (count + CHUNK - 1) / CHUNK, round_chunk, (void *)&j);
}

bool oq_has_bf16(void) { return oq_bf16_amx_runs() || oq_onednn_has_bf16(); }

bool oq_bf16_accumulates(void) { return oq_bf16_amx_runs(); }

oq_code oq_bf16_gemm_serial(const oq_bf16_gemm_args *g)
{
    if (oq_bf16_amx_runs()) return oq_bf16_amx(g);
#ifdef OQ_DOUBLE
    (void)g;
    return OQ_UNSUPPORTED;
#else
    return oq_onednn_bf16_gemm(g->transpose_a, g->transpose_b, g->m, g->n, g->k, g->a, g->lda, g->b, g->ldb, g->c,
                               g->ldc);
#endif
}

static oq_code run_panel(const void *product, oq_panel panel)
{
    oq_bf16_gemm_args part = *(const oq_bf16_gemm_args *)product;
    part.m = panel.rows;
    part.n = panel.columns;
    part.a += part.transpose_a ? panel.row : panel.row * part.lda;
    part.b += part.transpose_b ? panel.column * part.ldb : panel.column;
    part.c += panel.row * part.ldc + panel.column;
    return oq_bf16_gemm_serial(&part);
}

typedef struct {
    const oq_real *x;
    oq_real *to;
    int64_t columns, ld;
} addition;

static void add_row(void *user, int64_t row, int worker)
{
    const addition *j = user;
    (void)worker;
    oq_add(j->to + row * j->ld, j->x + row * j->columns, j->columns);
}

oq_code oq_bf16_gemm(oq_context *context, const oq_bf16_gemm_args *args)
{
    if (oq_bf16_amx_runs()) return oq_over_threads(context, args->m, args->n, args->k, run_panel, args);
    if (!args->accumulate) return oq_over_panels(context, args->m, args->n, args->k, run_panel, args);
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_bf16_gemm_args apart = *args;
    OQ_NEW(context, apart.c, args->m * args->n);
    apart.ldc = args->n;
    OQ_TRY(oq_over_panels(context, args->m, args->n, args->k, run_panel, &apart));
    addition j = {apart.c, args->c, args->n, args->ldc};
    oq_parallel_for(context->threads, args->m, add_row, &j);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
