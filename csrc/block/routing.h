/* Which experts a token goes to: the softmax of a router's logits, its likeliest `used`, and the rows those make when
 * every expert's tokens lie side by side.  T tokens, E experts, R = T used rows. */
#ifndef OQ_BLOCK_ROUTING_H
#define OQ_BLOCK_ROUTING_H

#include "block/block.h"

typedef struct {
    oq_real *probability; /* [T, E] logits in, their softmax out */
    oq_real *share;       /* [R] what an expert's output is weighed by */
    int64_t *token;       /* [R] in order of experts, then of tokens */
    int64_t *row;         /* [T, used] the rows of a token, in order of experts */
    int64_t *begin;       /* [E + 1] rows begin[e] to begin[e + 1] are expert e's */
} oq_routing;

oq_code oq_routing_create(oq_context *context, const oq_experts *experts, int64_t tokens, oq_routing *routing);
/* Of equal probabilities the first expert's counts as larger. */
oq_code oq_route(oq_context *context, const oq_experts *experts, int64_t tokens, const oq_routing *routing);
/* dlogits [T, E] from dshare [R]. Which experts are used is a constant. */
void oq_route_backward(const oq_experts *experts, int64_t tokens, const oq_routing *routing, const oq_real *dshare,
                       oq_real *dlogits);

#endif
