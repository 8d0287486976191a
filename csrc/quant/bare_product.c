#include "quant/bare_product.h"

#include <string.h>
#include <time.h>

#include "math/bf16.h"
#include "math/gemm.h"
#include "math/gemm_amx.h"
#include "math/gemm_panels.h"
#include "math/igemm.h"
#include "math/onednn.h"
#include "quant/byte_product.h"

typedef struct {
    const oq_bare_product *product;
    void *a, *b, *c;
    const oq_real *scales; /* [m + n] */
    const int32_t *sums;   /* [m + n] */
} operands;

static int most_of(int bits) { return bits == 8 ? 128 : (1 << bits) - 1; }

static oq_code byte_panel(const void *user, oq_panel panel)
{
    const operands *o = user;
    const oq_bare_product *p = o->product;
    return oq_igemm_serial(&(oq_igemm_args){.m = panel.rows,
                                            .n = panel.columns,
                                            .k = p->k,
                                            .a_most = (1 << p->a_bits) - 1,
                                            .b_most = most_of(p->b_bits),
                                            .a = (const uint8_t *)o->a + panel.row * p->k,
                                            .lda = p->k,
                                            .b = (const int8_t *)o->b + panel.column * p->k,
                                            .ldb = p->k,
                                            .c = (int32_t *)o->c + panel.row * p->n + panel.column,
                                            .ldc = p->n});
}

static oq_code halves_panel(const void *user, oq_panel panel)
{
    const oq_bf16_gemm_args g = oq_bf16_part(user, panel);
    float *c = (void *)g.c;
    return oq_onednn_bf16_gemm(g.transpose_a, g.transpose_b, g.m, g.n, g.k, g.a, g.lda, g.b, g.ldb, c, g.ldc);
}

/* By oneDNN as far as AVX-512 goes, AMX by ours. */
static oq_code run_halves(oq_context *context, bool own, const oq_bf16_gemm_args *g)
{
    if (own || oq_bf16_amx_runs() || !oq_onednn_has_bf16()) return oq_bf16_gemm(context, g);
    return oq_over_panels(context, g->m, g->n, g->k, halves_panel, g);
}

/* Scales, zero points and sums are as good as any: time does not depend on them. */
static oq_code run_integers(oq_context *context, const operands *o)
{
    const oq_bare_product *p = o->product;
    if (!p->own) return oq_over_panels(context, p->m, p->n, p->k, byte_panel, o);
    const oq_right b = {OQ_BY_COLUMNS, .n = p->n, .k = p->k, .bytes = o->b, .most = most_of(p->b_bits), .sum = o->sums};
    return oq_byte_product(context, &(oq_byte_product_args){.m = p->m,
                                                            .a = o->a,
                                                            .a_most = (1 << p->a_bits) - 1,
                                                            .b = &b,
                                                            .a_scale = o->scales,
                                                            .b_scale = o->scales,
                                                            .a_zero = o->sums,
                                                            .y = o->c});
}

static oq_code run(oq_context *context, const operands *o)
{
    const oq_bare_product *p = o->product;
    const int64_t lda = p->transpose_a ? p->m : p->k, ldb = p->transpose_b ? p->k : p->n;
    if (p->kind == OQ_PRODUCTS_INTEGER) return run_integers(context, o);
    if (p->kind == OQ_PRODUCTS_BFLOAT16)
        return run_halves(context, p->own,
                          &(oq_bf16_gemm_args){.transpose_a = p->transpose_a,
                                               .transpose_b = p->transpose_b,
                                               .m = p->m,
                                               .n = p->n,
                                               .k = p->k,
                                               .a = o->a,
                                               .b = o->b,
                                               .lda = lda,
                                               .ldb = ldb,
                                               .ldc = p->n,
                                               .c = o->c});
    return oq_gemm(context, &(oq_gemm_args){.transpose_a = p->transpose_a,
                                            .transpose_b = p->transpose_b,
                                            .m = p->m,
                                            .n = p->n,
                                            .k = p->k,
                                            .alpha = 1,
                                            .a = o->a,
                                            .b = o->b,
                                            .lda = lda,
                                            .ldb = ldb,
                                            .ldc = p->n,
                                            .c = o->c});
}

static double now(void)
{
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* count elements of a few bytes each, all of them the same harmless number. */
static oq_code fill(oq_context *context, void **to, int64_t count, size_t size)
{
    uint8_t *bytes;
    OQ_NEW(context, bytes, (size_t)count * size);
    memset(bytes, 0x01, (size_t)count * size);
    *to = bytes;
    return OQ_OK;
}

static size_t operand_size(oq_products kind)
{
    return kind == OQ_PRODUCTS_INTEGER ? 1 : kind == OQ_PRODUCTS_BFLOAT16 ? sizeof(uint16_t) : sizeof(oq_real);
}

oq_code oq_time_product(oq_context *context, const oq_bare_product *product, int64_t repeats, double *seconds)
{
    const oq_bare_product *p = product;
    operands o = {.product = p};
    if (!oq_has_products(p->kind))
        return oq_fail(context, OQ_UNSUPPORTED, "this processor, or oneDNN, has no such product");
    OQ_TRY(fill(context, &o.a, p->m * p->k, operand_size(p->kind)));
    OQ_TRY(fill(context, &o.b, p->n * p->k, operand_size(p->kind)));
    OQ_TRY(fill(context, &o.c, p->m * p->n, sizeof(oq_real)));
    OQ_TRY(fill(context, (void **)&o.scales, p->m + p->n, sizeof(oq_real)));
    OQ_TRY(fill(context, (void **)&o.sums, p->m + p->n, sizeof(int32_t)));
    OQ_TRY(run(context, &o)); /* kernels are generated at their first use */
    for (int64_t i = 0; i < repeats; i++) {
        OQ_TRY(oq_check_cancel(context));
        const double start = now();
        OQ_TRY(run(context, &o));
        seconds[i] = now() - start;
    }
    return OQ_OK;
}
