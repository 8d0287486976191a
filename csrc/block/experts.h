/* A mixture of experts in place of the MLP.
 *
 *   p = softmax(h Wr^T)      the likeliest experts of each token (block/routing.h)
 *   y = sum over those of p_e down_e(act(gate_e h) * up_e h)  +  sigmoid(h ws^T) shared(h)
 *
 * Routers read h in float; experts read it quantized, each the rows of its own tokens, gathered side by side, so an
 * expert is three products of some rows with some rows of the stacked weights. */
#ifndef OQ_BLOCK_EXPERTS_H
#define OQ_BLOCK_EXPERTS_H

#include "block/routing.h"

/* What an MLP over some rows keeps: R of the experts, T of the shared one. */
typedef struct {
    oq_real *gate, *up, *activated; /* [rows, F]; plain: gate is NULL */
    oq_forms u_hat;
    oq_range *u_ranges;
    oq_real *out; /* [rows, H] */
} oq_saved_mlp;

typedef struct oq_saved_experts {
    const oq_real *h; /* [T, H] in float */
    oq_routing routing;
    oq_forms gathered; /* [R, H] of h_hat */
    oq_saved_mlp routed, shared;
    oq_real *open; /* [T] sigmoid of the shared router */
} oq_saved_experts;

/* The linears of an MLP: those of all experts, or of the shared one. */
typedef struct {
    int gate, up, down;
    int64_t ffn;
} oq_mlp;
static inline oq_mlp oq_routed_mlp(const oq_block_spec *spec)
{
    return (oq_mlp){OQ_GATE, OQ_UP, OQ_DOWN, spec->ffn};
}
static inline oq_mlp oq_shared_mlp(const oq_block_spec *spec)
{
    return (oq_mlp){OQ_SHARED_GATE, OQ_SHARED_UP, OQ_SHARED_DOWN, spec->experts.shared_ffn};
}

oq_code oq_saved_experts_create(oq_context *context, const oq_block_run *run, oq_saved_experts **saved);
/* y [T, H] of h [T, H] and its quantized forms. */
oq_code oq_experts_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                           const oq_real *h, const oq_forms *h_hat, oq_saved_experts *saved, oq_real *y);
/* From dy [T, H]: dh_hat [T, H] of the quantized input, dh [T, H] of the float one; both NULL: not wanted. */
oq_code oq_experts_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                            const oq_block_gradients *gradients, const oq_saved_experts *saved,
                            const oq_forms *h_hat, const oq_real *dy, oq_real *dh_hat, oq_real *dh);

#endif
