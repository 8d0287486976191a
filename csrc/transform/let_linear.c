#include "transform/let_linear.h"

#include <string.h>

#include "transform/equivalent.h"

/* The map 1 / scale, and x without its shift [N, K]. */
static oq_code begin(oq_context *context, const oq_let_linear *let, oq_map *map, oq_real **centered)
{
    OQ_TRY(oq_map_create(context, map, OQ_MAP_DIAGONAL, (oq_affine){.blocks = 1, .width = let->in}, false));
    OQ_TRY(oq_map_forward(context, map, let->scale, "scale"));
    for (int64_t i = 0; i < let->in; i++)
        if (!isfinite((double)map->inverse[i]))
            return oq_fail(context, OQ_SINGULAR, "scale[%lld] is %g: it has no inverse", (long long)i,
                           (double)map->a[i]);
    OQ_NEW(context, *centered, let->rows * let->in);
    oq_center(let->x, let->shift, *centered, let->rows, let->in);
    return OQ_OK;
}

oq_code oq_let_linear_forward(oq_context *context, const oq_let_linear *let, oq_real *x, oq_real *weight,
                              oq_real *bias)
{
    oq_map map;
    oq_real *centered;
    OQ_TRY(begin(context, let, &map, &centered));
    OQ_TRY(oq_map_input(context, &map, centered, x, let->rows));
    OQ_TRY(oq_map_columns(context, &map, 1, let->weight, weight, let->out));
    if (let->shift) return oq_shifted_bias(context, let->weight, let->shift, let->bias, bias, let->out, let->in);
    if (let->bias) memcpy(bias, let->bias, sizeof *bias * (size_t)let->out);
    return OQ_OK;
}

oq_code oq_let_linear_backward(oq_context *context, const oq_let_linear *let, const oq_let_gradients *g)
{
    oq_map map;
    oq_real *centered;
    const oq_real *dw = g->dweight_transformed;
    OQ_TRY(begin(context, let, &map, &centered));
    OQ_TRY(oq_map_input_backward(context, &map, centered, g->dx_transformed, g->dx, let->rows));
    OQ_TRY(oq_map_columns_backward(context, &map, 1, let->weight, dw, let->out));
    OQ_TRY(oq_map_columns(context, &map, 1, dw, g->dweight, let->out)); /* dW = dW~ A, A diagonal */
    memset(g->dscale, 0, sizeof *g->dscale * (size_t)let->in);
    OQ_TRY(oq_map_backward(context, &map, let->scale, g->dscale));
    if (!let->shift) return OQ_OK;
    memset(g->dshift, 0, sizeof *g->dshift * (size_t)let->in);
    OQ_TRY(oq_center_backward(context, g->dx, g->dshift, let->rows, let->in));
    if (!g->dbias_transformed) return OQ_OK;
    return oq_shifted_bias_backward(context, let->weight, let->shift, g->dbias_transformed, g->dshift, g->dweight,
                                    let->out, let->in);
}
