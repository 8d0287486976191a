#include "calibrate/gram.h"

#include <string.h>

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

/* A window's product in oq_real, the sum over windows in double: a token that dwarfs the rest costs them no bits
 * but in its own window. */
oq_code oq_grams_add(oq_context *context, const oq_grams *grams, const oq_saved *saved, int64_t tokens)
{
    for (int site = 0; site < OQ_SITES; site++) {
        const int64_t n = grams->width[site];
        if (!grams->gram[site]) continue;
        const oq_real *x = input_at(saved, site);
        const oq_mark mark = oq_arena_mark(context->arena);
        oq_real *window;
        OQ_NEW(context, window, n * n);
        OQ_TRY(oq_linear_backward_weight(context, x, x, window, tokens, n, n, false));
        for (int64_t i = 0; i < n * n; i++) grams->gram[site][i] += (double)window[i];
        oq_arena_rewind(context->arena, mark);
    }
    return OQ_OK;
}
