#include "math/bf16.h"

#include "base/cpu.h"
#include "base/parallel.h"
#include "math/bf16_avx512.h"
#include "math/gemm_amx.h"

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

bool oq_has_bf16(void) { return oq_bf16_amx_runs() || (oq_bf16_avx512_runs() && oq_cpu_features()->fast_bf16); }

oq_code oq_bf16_gemm_serial(const oq_bf16_gemm_args *g)
{
    return oq_bf16_amx_runs() ? oq_bf16_amx(g) : oq_bf16_avx512(g);
}

oq_bf16_gemm_args oq_bf16_part(const oq_bf16_gemm_args *whole, oq_panel panel)
{
    oq_bf16_gemm_args part = *whole;
    part.m = panel.rows;
    part.n = panel.columns;
    part.a += part.transpose_a ? panel.row : panel.row * part.lda;
    part.b += part.transpose_b ? panel.column * part.ldb : panel.column;
    part.c += panel.row * part.ldc + panel.column;
    return part;
}

static oq_code run_panel(const void *product, oq_panel panel)
{
    const oq_bf16_gemm_args part = oq_bf16_part(product, panel);
    return oq_bf16_gemm_serial(&part);
}

oq_code oq_bf16_gemm(oq_context *context, const oq_bf16_gemm_args *args)
{
    return oq_over_threads(context, args->m, args->n, args->k, run_panel, args);
}
