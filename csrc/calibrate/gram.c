#include "calibrate/gram.h"

#include <string.h>

#include "base/size.h"
#include "math/gemm.h"

oq_code oq_grams_create(oq_context *context, oq_grams *grams, const oq_block_spec *spec, int site)
{
    memset(grams, 0, sizeof *grams);
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(spec, i)) grams->width[oq_sites_of(spec, i).columns] = oq_shape_of(spec, i).in;
    for (int i = 0; i < OQ_SITES; i++)
        if (grams->width[i] && (site < 0 || site == i))
            OQ_NEW_ZERO(context, grams->gram[i], grams->width[i] * grams->width[i]);
    return OQ_OK;
}

static const oq_real *input_at(const oq_saved *saved, int site)
{
    switch (site) {
    case OQ_SITE_NORM1: return saved->h_hat[OQ_NORM1].real;
    case OQ_SITE_NORM2: return saved->h_hat[OQ_NORM2].real;
    case OQ_SITE_VO: return saved->attended_hat.real;
    default: return saved->u_hat.real;
    }
}

/* Columns computed together, from the diagonal down: of n by n little more than half. */
enum { STRIPE = 128 };

/* gram [n, n] += X^T X of one window X [tokens, n], on the diagonal and below. */
static oq_code add_site(oq_context *context, double *gram, int64_t n, const oq_real *x, int64_t tokens)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *stripe;
    OQ_NEW(context, stripe, n * STRIPE);
    for (int64_t begin = 0; begin < n; begin += STRIPE) {
        const int64_t width = oq_least(n - begin, STRIPE);
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_a = true,
                                                .m = n - begin,
                                                .n = width,
                                                .k = tokens,
                                                .alpha = 1,
                                                .a = x + begin,
                                                .lda = n,
                                                .b = x + begin,
                                                .ldb = n,
                                                .c = stripe,
                                                .ldc = width}));
        for (int64_t i = 0; i < n - begin; i++) {
            const int64_t count = oq_least(i + 1, width);
            double *to = gram + (begin + i) * n + begin;
            for (int64_t j = 0; j < count; j++) to[j] += (double)stripe[i * width + j];
        }
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* A window's product in oq_real, the sum over windows in double: a token that dwarfs the rest costs them no bits
 * but in its own window. */
oq_code oq_grams_add(oq_context *context, const oq_grams *grams, const oq_saved *saved, int64_t tokens)
{
    for (int site = 0; site < OQ_SITES; site++)
        if (grams->gram[site])
            OQ_TRY(add_site(context, grams->gram[site], grams->width[site], input_at(saved, site), tokens));
    return OQ_OK;
}

void oq_grams_complete(const oq_grams *grams)
{
    for (int site = 0; site < OQ_SITES; site++) {
        const int64_t n = grams->width[site];
        double *gram = grams->gram[site];
        for (int64_t i = 0; gram && i < n; i++)
            for (int64_t j = i + 1; j < n; j++) gram[i * n + j] = gram[j * n + i];
    }
}
