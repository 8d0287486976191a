#include "block/head.h"

#include "math/cross_entropy.h"

oq_code oq_next_token_nll(oq_context *context, const oq_head *head, double *nll)
{
    const oq_norm_shape shape = {head->norm, head->norm_eps, head->tokens - 1, head->width};
    const int64_t window = head->tokens * head->width;
    oq_real *normed;
    oq_norm_stats *stats;
    OQ_NEW(context, normed, shape.rows * shape.width);
    OQ_NEW(context, stats, shape.rows);
    for (int64_t i = 0; i < head->samples; i++) {
        oq_norm_forward(context, shape, head->hidden + i * window, head->gain, head->bias, normed, stats);
        OQ_TRY(oq_cross_entropy(context, normed, head->head, head->ids + i * head->tokens + 1,
                                nll + i * shape.rows, shape.rows, shape.width, head->vocabulary));
    }
    return OQ_OK;
}
