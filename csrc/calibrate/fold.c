#include "calibrate/fold.h"

#include <string.h>

#include "block/input_map.h"

static void copy(oq_real *to, const oq_real *from, int64_t count)
{
    if (to && from) memcpy(to, from, sizeof *to * (size_t)count);
}

static oq_code fold_linear(oq_context *context, const oq_transformed *t, const oq_real *theta, int linear,
                           const oq_folded *folded)
{
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const oq_real *w = oq_staged_weight(t, linear);
    copy(folded->bias[linear], t->bias[linear], shape.out);
    if (!oq_quantizes(t->options, linear)) {
        copy(folded->weight[linear], w, shape.out * shape.in);
        return OQ_OK;
    }
    const oq_groups groups = oq_weight_groups(t->spec, t->options, linear);
    return oq_quantize(context, &groups, oq_weight_clip(t, linear, theta), w, folded->codes[linear],
                       folded->scale[linear], folded->zero_point[linear]);
}

oq_code oq_fold_block(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                      const oq_options *options, const oq_real *theta, const oq_folded *folded)
{
    oq_learnables list;
    oq_transformed t;
    OQ_TRY(oq_check_spec(context, spec));
    OQ_TRY(oq_check_options(context, spec, options));
    oq_learnables_list(spec, options, weights, &list);
    OQ_TRY(oq_transformed_create(context, &t, spec, options, weights, &list));
    OQ_TRY(oq_transformed_forward(context, &t, theta, options->epochs - 1));
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(spec, i)) OQ_TRY(fold_linear(context, &t, theta, i, folded));
    const oq_block_weights folded_weights = oq_transformed_weights(&t);
    for (int i = 0; i < OQ_NORMS; i++) {
        copy(folded->gain[i], folded_weights.gain[i], oq_norm_width(spec, i));
        copy(folded->norm_bias[i], folded_weights.norm_bias[i], oq_norm_width(spec, i));
    }
    for (int i = 0; i < OQ_INPUT_NORMS; i++)
        copy(folded->map_inverse[i], folded_weights.map_inverse[i], spec->hidden * spec->hidden);
    for (int i = 0; i < OQ_INPUTS; i++) {
        const oq_kronecker size = oq_input_factors(spec, i);
        copy(folded->left[i], folded_weights.left[i], size.a * size.a);
        copy(folded->right[i], folded_weights.right[i], size.b * size.b);
        copy(folded->clip[i], folded_weights.clip[i], 2);
    }
    return OQ_OK;
}
