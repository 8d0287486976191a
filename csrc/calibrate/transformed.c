#include "calibrate/transformed.h"

#include <string.h>

#include "block/input_map.h"
#include "block/rotation.h"
#include "calibrate/norm_gradient.h"
#include "calibrate/shift.h"
#include "calibrate/stages.h"
#include "calibrate/weight_taker.h"
#include "math/bf16.h"

oq_groups oq_weight_groups(const oq_block_spec *spec, const oq_options *options, int linear)
{
    const oq_linear_shape shape = oq_shape_of(spec, linear);
    const oq_scheme scheme = oq_scheme_of(options, linear);
    return (oq_groups){shape.out, shape.in, oq_group_within(scheme.group_size, shape.in), scheme.quantizer};
}

oq_clip oq_weight_clip(const oq_transformed *t, int linear, const oq_real *theta)
{
    const oq_learnables *list = t->list;
    return (oq_clip){.max_logit = oq_part_const(list, list->lwc_max[linear], theta),
                     .min_logit = oq_part_const(list, list->lwc_min[linear], theta),
                     .offset = oq_part_const(list, list->offset[linear], theta),
                     .scaling = {t->column_factors[linear], t->row_factors[linear]}};
}

/* What W takes of its input's map: W (A1 (x) A2)^T. */
static oq_kronecker input_map_of(const oq_transformed *t, int linear)
{
    oq_kronecker map = oq_input_factors(t->spec, oq_input_of(t->spec, linear));
    map.left = t->map[oq_left_site(oq_input_of(t->spec, linear))].a;
    map.right = t->map[oq_right_site(oq_input_of(t->spec, linear))].a;
    map.transposed = true;
    return map;
}

/* ---- forward ------------------------------------------------------------ */

const oq_real *oq_unrotated_weight(const oq_transformed *t, int linear)
{
    return t->unrotated[linear] ? t->unrotated[linear] : t->original->weight[linear];
}

/* W before its input's Kronecker map. */
static const oq_real *before_input(const oq_transformed *t, int linear)
{
    if (t->after_rows[linear]) return t->after_rows[linear];
    return t->after_columns[linear] ? t->after_columns[linear] : t->original->weight[linear];
}

const oq_real *oq_staged_weight(const oq_transformed *t, int linear)
{
    return t->after_input[linear] ? t->after_input[linear] : before_input(t, linear);
}

oq_code oq_transformed_weight(oq_context *context, const oq_transformed *t, int linear, const oq_real **w)
{
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const oq_scaling scaling = {t->column_factors[linear], t->row_factors[linear]};
    oq_real *scaled;
    *w = oq_staged_weight(t, linear);
    if (!oq_is_scaled(&scaling)) return OQ_OK;
    OQ_NEW(context, scaled, shape.out * shape.in);
    for (int64_t r = 0; r < shape.out; r++)
        oq_scale_values(scaling.columns, oq_row_factor(&scaling, r), *w + r * shape.in, scaled + r * shape.in,
                        shape.in);
    *w = scaled;
    return OQ_OK;
}

static oq_code linear_forward(oq_context *context, oq_transformed *t, const oq_real *theta, int linear)
{
    const oq_linear_sites sites = oq_sites_of(t->spec, linear);
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const oq_real *w = t->original->weight[linear];
    if (t->after_columns[linear]) {
        OQ_TRY(oq_map_columns(context, &t->map[sites.columns], oq_repeat_of(t->spec, sites.columns, linear),
                              oq_unrotated_weight(t, linear), t->after_columns[linear], shape.out));
        OQ_TRY(oq_rotate_input(context, t->spec, linear, t->after_columns[linear], shape.out));
        w = t->after_columns[linear];
    }
    if (t->after_rows[linear])
        OQ_TRY(oq_map_rows(context, &t->map[sites.rows], sites.inverse, oq_repeat_of(t->spec, sites.rows, linear),
                           w, t->after_rows[linear], shape.in));
    if (t->after_input[linear]) {
        const oq_kronecker map = input_map_of(t, linear);
        OQ_TRY(oq_kronecker_forward(context, &map, before_input(t, linear), t->after_input[linear], shape.out));
    }
    if (t->column_factors[linear])
        oq_map_factors(&t->map[sites.columns], false, oq_repeat_of(t->spec, sites.columns, linear),
                       t->column_factors[linear]);
    if (t->row_factors[linear])
        oq_map_factors(&t->map[sites.rows], sites.inverse, oq_repeat_of(t->spec, sites.rows, linear),
                       t->row_factors[linear]);
    w = oq_staged_weight(t, linear);
    const oq_groups groups = oq_weight_groups(t->spec, t->options, linear);
    if (oq_quantizes(t->options, linear))
        return oq_quantize_forms(context, &groups, oq_weight_clip(t, linear, theta), w,
                                 &t->quantized[linear], t->ranges[linear]);
    if (t->quantized[linear].half) oq_bf16_from_real(context, w, t->quantized[linear].half, shape.out * shape.in);
    return OQ_OK;
}

static oq_code bias_forward(oq_context *context, oq_transformed *t, const oq_real *theta, int linear)
{
    const int rows = oq_sites_of(t->spec, linear).rows;
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    if (!t->bias[linear]) return OQ_OK;
    oq_shift_bias_forward(t, theta, linear, t->bias_before_rows[linear]);
    if (oq_has_rows_map(t, linear))
        return oq_map_rows(context, &t->map[rows], oq_sites_of(t->spec, linear).inverse,
                           oq_repeat_of(t->spec, rows, linear), t->bias_before_rows[linear], t->bias[linear], 1);
    memcpy(t->bias[linear], t->bias_before_rows[linear], sizeof *t->bias[linear] * (size_t)shape.out);
    return OQ_OK;
}

/* g~ = g / s and b~ = (b - delta) / s for a diagonal map; an online map leaves g and divides nothing. */
static void norm_forward(oq_transformed *t, const oq_real *theta, int norm)
{
    const int site = oq_site_of_norm(norm);
    const oq_map *map = &t->map[site];
    const oq_real *shift = oq_part_const(t->list, t->list->shift[site], theta);
    for (int64_t i = 0; i < t->spec->hidden; i++) {
        const oq_real factor = map->kind == OQ_MAP_DIAGONAL ? map->inverse[i] : 1;
        t->gain[norm][i] = t->original->gain[norm][i] * factor;
        if (t->norm_bias[norm])
            t->norm_bias[norm][i] = (t->original->norm_bias[norm][i] - (shift ? shift[i] : 0)) * factor;
    }
}

static void zero(void *x, size_t size, int64_t count)
{
    if (x) memset(x, 0, size * (size_t)count);
}

static void zero_gradients(oq_transformed *t)
{
    t->fresh = true;
    memset(t->dlac, 0, sizeof t->dlac);
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(t->spec, i);
        zero(t->dbias[i], sizeof(oq_real), shape.out);
        zero(t->dcolumn_factors[i], sizeof(double), shape.in);
        zero(t->drow_factors[i], sizeof(double), shape.out);
    }
    for (int i = 0; i < OQ_INPUT_NORMS; i++) {
        zero(t->along_weights[i], sizeof(double), t->spec->hidden);
        zero(t->dgain[i], sizeof(oq_real), t->spec->hidden);
        zero(t->dnorm_bias[i], sizeof(oq_real), t->spec->hidden);
    }
}

oq_code oq_transformed_forward(oq_context *context, oq_transformed *t, const oq_real *theta, int64_t epoch)
{
    t->theta = theta;
    for (int site = 0; site < OQ_SITES; site++) {
        oq_affine *affine = &t->map[site].affine;
        if (t->map[site].kind == OQ_MAP_NONE) continue;
        affine->mask.band = oq_mask_band(affine->width, epoch, t->options->epochs);
        OQ_TRY(oq_map_forward(context, &t->map[site], oq_part_const(t->list, t->list->map[site], theta),
                              oq_site_names[site]));
    }
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!oq_has_linear(t->spec, i)) continue;
        OQ_TRY(linear_forward(context, t, theta, i));
        OQ_TRY(bias_forward(context, t, theta, i));
    }
    for (int i = 0; i < OQ_INPUT_NORMS; i++)
        if (oq_has_norm(t->spec, i)) norm_forward(t, theta, i);
    for (int i = 0; i < OQ_INPUTS; i++) t->lac[i] = oq_part_const(t->list, t->list->lac[i], theta);
    zero_gradients(t);
    return OQ_OK;
}

/* ---- backward ----------------------------------------------------------- */

/* *dw [out, in]: gradient behind the input's Kronecker map in, before it out; NULL out where nobody wants it. */
static oq_code input_map_backward(oq_context *context, oq_transformed *t, int linear, bool wanted, oq_real **dw)
{
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const int input = oq_input_of(t->spec, linear);
    const oq_kronecker map = input_map_of(t, linear);
    oq_real *dbefore = NULL;
    if (wanted) OQ_NEW(context, dbefore, shape.out * shape.in);
    OQ_TRY(oq_kronecker_backward(context, &map, before_input(t, linear), *dw, t->map[oq_left_site(input)].da,
                                 t->map[oq_right_site(input)].da, dbefore, shape.out));
    *dw = dbefore;
    return OQ_OK;
}

/* Back from the factors of the diagonal maps its quantizer applies. */
static void factors_backward(oq_transformed *t, int linear)
{
    const oq_linear_sites sites = oq_sites_of(t->spec, linear);
    if (t->column_factors[linear])
        oq_map_factors_backward(&t->map[sites.columns], false, oq_repeat_of(t->spec, sites.columns, linear),
                                t->dcolumn_factors[linear]);
    if (t->row_factors[linear])
        oq_map_factors_backward(&t->map[sites.rows], sites.inverse, oq_repeat_of(t->spec, sites.rows, linear),
                                t->drow_factors[linear]);
}

static oq_code linear_backward(oq_context *context, oq_transformed *t, int linear)
{
    const oq_linear_sites sites = oq_sites_of(t->spec, linear);
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const bool columns = t->after_columns[linear], rows = t->after_rows[linear], mapped = t->after_input[linear];
    oq_real *dw = t->dweight[linear]; /* gradient of W^, then of each stage before it, in place */
    if (dw && oq_quantizes(t->options, linear)) OQ_TRY(oq_lead_back(context, t, linear, 0, shape.out, dw, dw));
    factors_backward(t, linear);
    if (!dw) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    if (mapped) OQ_TRY(input_map_backward(context, t, linear, columns || rows, &dw));
    if (rows) {
        oq_real *dbefore = NULL;
        if (columns) OQ_NEW(context, dbefore, shape.out * shape.in);
        OQ_TRY(oq_map_rows_backward(
            context, &t->map[sites.rows], sites.inverse, oq_repeat_of(t->spec, sites.rows, linear),
            columns ? t->after_columns[linear] : t->original->weight[linear], dw, dbefore, shape.in));
        dw = dbefore;
    }
    if (columns) {
        OQ_TRY(oq_rotate_input(context, t->spec, linear, dw, shape.out));
        OQ_TRY(oq_map_columns_backward(context, &t->map[sites.columns],
                                       oq_repeat_of(t->spec, sites.columns, linear),
                                       oq_unrotated_weight(t, linear), dw, shape.out));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code bias_backward(oq_context *context, oq_transformed *t, oq_real *dtheta, int linear)
{
    const oq_linear_sites sites = oq_sites_of(t->spec, linear);
    oq_real *db = t->dbias[linear];
    if (!db) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    if (oq_has_rows_map(t, linear)) {
        oq_real *dbefore;
        OQ_NEW(context, dbefore, oq_shape_of(t->spec, linear).out);
        OQ_TRY(oq_map_rows_backward(context, &t->map[sites.rows], sites.inverse,
                                    oq_repeat_of(t->spec, sites.rows, linear), t->bias_before_rows[linear], db,
                                    dbefore, 1));
        db = dbefore;
    }
    oq_shift_bias_backward(t, dtheta, linear, db);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static void norm_backward(oq_transformed *t, const oq_real *theta, oq_real *dtheta, int norm)
{
    const int site = oq_site_of_norm(norm);
    oq_map *map = &t->map[site];
    const oq_real *shift = oq_part_const(t->list, t->list->shift[site], theta);
    oq_real *dshift = oq_part(t->list, t->list->shift[site], dtheta);
    if (map->kind == OQ_MAP_NONE) return;
    for (int64_t i = 0; i < t->spec->hidden; i++) {
        const oq_real factor = map->kind == OQ_MAP_DIAGONAL ? map->inverse[i] : 1;
        if (map->kind == OQ_MAP_DIAGONAL) {
            map->dinverse[i] += t->dgain[norm][i] * t->original->gain[norm][i];
            if (t->dnorm_bias[norm])
                map->dinverse[i] +=
                    t->dnorm_bias[norm][i] * (t->original->norm_bias[norm][i] - (shift ? shift[i] : 0));
        }
        if (dshift) dshift[i] -= t->dnorm_bias[norm][i] * factor;
    }
}

oq_code oq_transformed_backward(oq_context *context, oq_transformed *t, oq_real *dtheta)
{
    const oq_real *theta = t->theta;
    t->dtheta = dtheta;
    for (int i = 0; i < OQ_INPUT_NORMS; i++) {
        if (t->by_weights[i])
            OQ_TRY(oq_norm_backward_by_weights(context, t, dtheta, i));
        else
            norm_backward(t, theta, dtheta, i);
    }
    for (int i = 0; i < OQ_INPUTS; i++)
        for (int k = 0; t->lac[i] && k < 2; k++) oq_part(t->list, t->list->lac[i], dtheta)[k] += t->dlac[i][k];
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!oq_has_linear(t->spec, i)) continue;
        OQ_TRY(linear_backward(context, t, i));
        OQ_TRY(bias_backward(context, t, dtheta, i));
    }
    for (int site = 0; site < OQ_SITES; site++)
        OQ_TRY(oq_map_backward(context, &t->map[site], oq_part_const(t->list, t->list->map[site], theta),
                               oq_part(t->list, t->list->map[site], dtheta)));
    return OQ_OK;
}
