#include "calibrate/weight_taker.h"

#include "calibrate/norm_gradient.h"

bool oq_is_taken(const oq_transformed *t, int linear)
{
    return oq_quantizes(t->options, linear) && !t->after_columns[linear] && !t->after_rows[linear] &&
           !t->after_input[linear];
}

static oq_clip_gradients gradients_of(const oq_transformed *t, int linear)
{
    const oq_learnables *list = t->list;
    return (oq_clip_gradients){.max_logit = oq_part(list, list->lwc_max[linear], t->dtheta),
                               .min_logit = oq_part(list, list->lwc_min[linear], t->dtheta),
                               .offset = oq_part(list, list->offset[linear], t->dtheta),
                               .columns = t->dcolumn_factors[linear],
                               .rows = t->drow_factors[linear]};
}

oq_code oq_lead_back(oq_context *context, oq_transformed *t, int linear, int64_t first, int64_t count,
                     const oq_real *dw, oq_real *dx)
{
    oq_groups groups = oq_weight_groups(t->spec, t->options, linear);
    const oq_clip clip = oq_clip_behind(oq_weight_clip(t, linear, t->theta), &groups, first);
    const oq_clip_gradients gradients = oq_clip_gradients_behind(gradients_of(t, linear), &groups, first);
    groups.rows = count;
    return oq_fake_quantize_backward(context, &groups, clip, oq_staged_weight(t, linear) + first * groups.width,
                                     t->ranges[linear] + first * oq_groups_per_row(&groups), dw, dx, gradients);
}

static oq_code take(oq_context *context, void *user, int linear, int64_t first, int64_t count, const oq_real *dw)
{
    oq_transformed *t = user;
    oq_norm_take(context, t, linear, first, count, dw);
    return oq_lead_back(context, t, linear, first, count, dw, NULL);
}

oq_weight_taker oq_taker(oq_transformed *t)
{
    oq_weight_taker taker = {.take = take, .user = t};
    for (int i = 0; i < OQ_LINEARS; i++) taker.of[i] = t->taken[i];
    return taker;
}
