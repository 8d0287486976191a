#include "block/head.h"

#include "math/cross_entropy.h"

oq_code oq_token_nll(oq_context *context, const oq_head *head, double *nll, int32_t *best)
{
    const oq_norm_shape shape = {head->norm, head->norm_eps, head->rows, head->width};
    const oq_logits logits = {head->head, head->head_bias, head->logit_cap, shape.width, head->vocabulary};
    oq_real *normed;
    oq_norm_stats *stats;
    OQ_NEW(context, normed, shape.rows * shape.width);
    OQ_NEW(context, stats, shape.rows);
    oq_norm_forward(context, shape, head->hidden, head->gain, head->bias, normed, stats);
    return oq_cross_entropy(context, &logits, normed, head->targets, nll, best, shape.rows);
}
