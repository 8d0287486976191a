#include "calibrate/transformed.h"

#include "calibrate/weight_taker.h"

oq_block_weights oq_transformed_weights(const oq_transformed *t)
{
    oq_block_weights weights = {0};
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!oq_has_linear(t->spec, i)) continue;
        weights.weight[i] =
            oq_quantizes(t->options, i) ? t->quantized[i].real : oq_staged_weight(t, i);
        weights.forms[i] = t->quantized[i];
        weights.bias[i] = t->bias[i];
    }
    for (int i = OQ_INPUT_NORMS; i < OQ_NORMS; i++) { /* they stand behind linears: no map, constants */
        weights.gain[i] = t->original->gain[i];
        weights.norm_bias[i] = t->original->norm_bias[i];
    }
    for (int i = 0; i < OQ_INPUT_NORMS; i++) {
        const oq_map *map = &t->map[oq_site_of_norm(i)];
        weights.gain[i] = t->gain[i];
        weights.norm_bias[i] = t->norm_bias[i];
        weights.map_inverse[i] = map->kind == OQ_MAP_DENSE ? map->inverse : NULL;
    }
    for (int i = 0; i < OQ_INPUTS; i++) {
        weights.left[i] = t->map[oq_left_site(i)].inverse;
        weights.right[i] = t->map[oq_right_site(i)].inverse;
        weights.clip[i] = t->lac[i];
    }
    return weights;
}

oq_block_gradients oq_transformed_gradients(oq_transformed *t, oq_real *dtheta)
{
    oq_block_gradients gradients = {.fresh = t->fresh, .taker = oq_taker(t)};
    t->dtheta = dtheta;
    for (int i = 0; i < OQ_LINEARS; i++) {
        gradients.weight[i] = t->dweight[i];
        gradients.bias[i] = t->dbias[i];
    }
    for (int i = 0; i < OQ_INPUT_NORMS; i++) {
        const oq_map *map = &t->map[oq_site_of_norm(i)];
        gradients.gain[i] = t->dgain[i];
        gradients.norm_bias[i] = t->dnorm_bias[i];
        gradients.map_inverse[i] = map->kind == OQ_MAP_DENSE ? map->dinverse : NULL;
    }
    for (int i = 0; i < OQ_INPUTS; i++) {
        gradients.left[i] = t->map[oq_left_site(i)].dinverse;
        gradients.right[i] = t->map[oq_right_site(i)].dinverse;
        gradients.clip[i] = t->lac[i] ? t->dlac[i] : NULL;
    }
    return gradients;
}
