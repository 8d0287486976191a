#include <string.h>

#include "block/linear.h"
#include "calibrate/norm_gradient.h"
#include "calibrate/stages.h"
#include "calibrate/weight_taker.h"
#include "quant/gradient_products.h"
#include "quant/integer_product.h"

static oq_code create_maps(oq_context *context, oq_transformed *t)
{
    for (int site = 0; site < OQ_SITES; site++) {
        oq_affine affine = oq_site_geometry(t->spec, site);
        affine.parametrization = t->options->parametrization;
        affine.mask = (oq_mask){.band = affine.width - 1, .stability = t->options->stability};
        OQ_TRY(oq_map_create(context, &t->map[site], oq_map_at(t->spec, t->options, site), affine,
                             t->options->dominance == OQ_DOMINANCE_MONITOR));
    }
    return OQ_OK;
}

bool oq_has_integer_linear(const oq_block_spec *spec, const oq_options *options, int linear)
{
    const oq_groups groups = oq_weight_groups(spec, options, linear);
    return options->products >= OQ_PRODUCTS_INTEGER && oq_is_quantized(groups.quantizer) &&
           oq_groups_per_row(&groups) == 1 &&
           oq_has_integer_product(options->activation.x, groups.quantizer, groups.width);
}

static bool has_byte_gradients(const oq_transformed *t, int linear)
{
    return t->options->byte_gradients && oq_quantizes(t->options, linear) && !oq_is_router(linear) &&
           oq_has_byte_gradients(oq_outputs_summed(t->spec, linear));
}

static oq_code create_forms(oq_context *context, oq_transformed *t, int linear)
{
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const int64_t count = shape.out * shape.in;
    oq_forms *forms = &t->quantized[linear];
    const bool integer = oq_has_integer_linear(t->spec, t->options, linear);
    forms->byte_gradients = has_byte_gradients(t, linear);
    if (oq_is_router(linear)) return OQ_OK;
    if (t->options->products == OQ_PRODUCTS_BFLOAT16 && !(integer && forms->byte_gradients))
        OQ_NEW(context, forms->half, count);
    if (!oq_quantizes(t->options, linear)) return OQ_OK;
    const oq_groups groups = oq_weight_groups(t->spec, t->options, linear);
    const bool one_grid = oq_groups_per_row(&groups) == 1 && oq_fits_signed_bytes(groups.quantizer);
    OQ_NEW(context, t->ranges[linear], shape.out * oq_groups_per_row(&groups));
    if (!forms->half && !(integer && forms->byte_gradients)) OQ_NEW(context, forms->real, count);
    if (!integer && !(forms->byte_gradients && one_grid)) return OQ_OK;
    OQ_NEW(context, forms->centred, count);
    forms->most = oq_most_centred(groups.quantizer);
    OQ_NEW(context, forms->scale, shape.out);
    if (integer) OQ_NEW(context, forms->sum, shape.out);
    return OQ_OK;
}

static oq_code create_linear(oq_context *context, oq_transformed *t, int linear)
{
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const int64_t count = shape.out * shape.in;
    const bool learned = oq_has_columns_map(t, linear) || oq_has_rows_map(t, linear) || oq_has_input_map(t) ||
                         t->list->lwc_max[linear] >= 0 || t->list->offset[linear] >= 0;
    if (oq_scales_columns(t, linear))
        OQ_NEW(context, t->column_factors[linear], shape.in);
    else if (oq_has_columns_map(t, linear))
        OQ_NEW(context, t->after_columns[linear], count);
    if (oq_has_columns_map(t, linear) && oq_has_rotation(t->spec, linear)) {
        OQ_NEW(context, t->unrotated[linear], count);
        OQ_TRY(oq_rotated_input(context, t->spec, linear, t->original->weight[linear], t->unrotated[linear],
                                shape.out));
    }
    if (oq_scales_rows(t, linear))
        OQ_NEW(context, t->row_factors[linear], shape.out);
    else if (oq_has_rows_map(t, linear))
        OQ_NEW(context, t->after_rows[linear], count);
    if (oq_has_input_map(t)) OQ_NEW(context, t->after_input[linear], count);
    OQ_TRY(create_forms(context, t, linear));
    t->taken[linear] = learned && oq_is_taken(t, linear);
    if (learned && !t->taken[linear]) OQ_NEW(context, t->dweight[linear], count);
    if (t->column_factors[linear]) OQ_NEW(context, t->dcolumn_factors[linear], shape.in);
    if (t->row_factors[linear]) OQ_NEW(context, t->drow_factors[linear], shape.out);
    if (!t->original->bias[linear]) return OQ_OK;
    OQ_NEW(context, t->bias_before_rows[linear], shape.out);
    OQ_NEW(context, t->bias[linear], shape.out);
    if (learned) OQ_NEW(context, t->dbias[linear], shape.out);
    return OQ_OK;
}

static oq_code create_norm(oq_context *context, oq_transformed *t, int norm)
{
    const int site = oq_site_of_norm(norm);
    const int64_t H = t->spec->hidden;
    t->by_weights[norm] = oq_norm_learns_by_weights(t, norm);
    const bool learned = t->map[site].kind != OQ_MAP_NONE && !t->by_weights[norm];
    if (t->by_weights[norm]) OQ_NEW(context, t->along_weights[norm], H);
    OQ_NEW(context, t->gain[norm], H);
    if (learned) OQ_NEW(context, t->dgain[norm], H);
    if (!t->original->norm_bias[norm]) return OQ_OK;
    OQ_NEW(context, t->norm_bias[norm], H);
    if (learned) OQ_NEW(context, t->dnorm_bias[norm], H);
    return OQ_OK;
}

oq_code oq_transformed_create(oq_context *context, oq_transformed *t, const oq_block_spec *spec,
                              const oq_options *options, const oq_block_weights *original,
                              const oq_learnables *list)
{
    memset(t, 0, sizeof *t);
    t->spec = spec;
    t->options = options;
    t->original = original;
    t->list = list;
    OQ_TRY(create_maps(context, t));
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(spec, i)) OQ_TRY(create_linear(context, t, i));
    for (int i = 0; i < OQ_INPUT_NORMS; i++)
        if (oq_has_norm(spec, i)) OQ_TRY(create_norm(context, t, i));
    return OQ_OK;
}
