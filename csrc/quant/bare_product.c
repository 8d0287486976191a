#include "quant/bare_product.h"

#include <string.h>
#include <time.h>

#include "math/bf16.h"
#include "math/gemm.h"
#include "math/gemm_panels.h"
#include "math/onednn.h"

typedef struct {
    oq_products kind;
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    void *a, *b, *c;
} product;

static oq_code byte_panel(const void *user, oq_panel panel)
{
    const product *p = user;
    return oq_onednn_igemm(false, panel.rows, panel.columns, p->k, (const uint8_t *)p->a + panel.row * p->k, p->k,
                           (const int8_t *)p->b + panel.column * p->k, p->k,
                           (int32_t *)p->c + panel.row * p->n + panel.column, p->n);
}

static oq_code run(oq_context *context, const product *p)
{
    const int64_t lda = p->transpose_a ? p->m : p->k, ldb = p->transpose_b ? p->k : p->n;
    if (p->kind == OQ_PRODUCTS_INTEGER) return oq_over_panels(context, p->m, p->n, p->k, byte_panel, p);
    if (p->kind == OQ_PRODUCTS_BFLOAT16)
        return oq_bf16_gemm(context, &(oq_bf16_gemm_args){.transpose_a = p->transpose_a,
                                                          .transpose_b = p->transpose_b,
                                                          .m = p->m,
                                                          .n = p->n,
                                                          .k = p->k,
                                                          .a = p->a,
                                                          .b = p->b,
                                                          .lda = lda,
                                                          .ldb = ldb,
                                                          .ldc = p->n,
                                                          .c = p->c});
    return oq_gemm(context, &(oq_gemm_args){.transpose_a = p->transpose_a,
                                            .transpose_b = p->transpose_b,
                                            .m = p->m,
                                            .n = p->n,
                                            .k = p->k,
                                            .alpha = 1,
                                            .a = p->a,
                                            .b = p->b,
                                            .lda = lda,
                                            .ldb = ldb,
                                            .ldc = p->n,
                                            .c = p->c});
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

oq_code oq_time_product(oq_context *context, oq_products kind, bool transpose_a, bool transpose_b, int64_t m,
                        int64_t n, int64_t k, int64_t repeats, double *seconds)
{
    product p = {.kind = kind, .transpose_a = transpose_a, .transpose_b = transpose_b, .m = m, .n = n, .k = k};
    if (!oq_has_products(kind))
        return oq_fail(context, OQ_UNSUPPORTED, "this processor, or oneDNN, has no such product");
    OQ_TRY(fill(context, &p.a, m * k, operand_size(kind)));
    OQ_TRY(fill(context, &p.b, n * k, operand_size(kind)));
    OQ_TRY(fill(context, &p.c, m * n, sizeof(oq_real)));
    OQ_TRY(run(context, &p)); /* kernels are generated at their first use */
    for (int64_t i = 0; i < repeats; i++) {
        OQ_TRY(oq_check_cancel(context));
        const double start = now();
        OQ_TRY(run(context, &p));
        seconds[i] = now() - start;
    }
    return OQ_OK;
}
