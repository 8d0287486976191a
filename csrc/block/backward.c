#include <string.h>

#include "block/act_quant.h"
#include "block/block.h"
#include "block/linear.h"
#include "block/rotation.h"
#include "math/attention.h"
#include "math/gemm.h"
#include "math/vector.h"

/* What every step of the backward pass needs. */
typedef struct {
    const oq_block_run *run;
    const oq_block_weights *weights;
    const oq_saved *saved;
    const oq_block_gradients *gradients;
} pass;

static oq_code linear_backward(oq_context *context, const pass *p, int which, const oq_forms *x, const oq_real *dy,
                               oq_real *dx, bool accumulate)
{
    return oq_block_linear_backward(context, p->run, p->weights, p->gradients, which, x, dy, dx, accumulate);
}

/* dh [T, H]: gradient of h_hat in; spent here.  dx [T, H] += through the norm, NULL where x is a constant. */
static oq_code norm_backward(oq_context *context, const pass *p, int which, const oq_real *x, oq_real *dh,
                             oq_real *dx)
{
    const oq_saved *s = p->saved;
    const int64_t T = p->run->tokens, H = p->run->spec->hidden;
    const oq_real *inverse = p->weights->map_inverse[which];
    const oq_mark mark = oq_arena_mark(context->arena);
    OQ_TRY(oq_act_quant_backward(context, p->run->quantizers->x, s->h[which], s->h_ranges[which], dh, T, H));
    if (inverse) { /* h = normed A^-1 */
        oq_real *dnormed;
        OQ_NEW(context, dnormed, T * H);
        if (p->gradients->map_inverse[which])
            OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_a = true,
                                                    .m = H,
                                                    .n = H,
                                                    .k = T,
                                                    .alpha = 1,
                                                    .beta = 1,
                                                    .a = s->normed[which],
                                                    .lda = H,
                                                    .b = dh,
                                                    .ldb = H,
                                                    .c = p->gradients->map_inverse[which],
                                                    .ldc = H}));
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.transpose_b = true,
                                                .m = T,
                                                .n = H,
                                                .k = H,
                                                .alpha = 1,
                                                .a = dh,
                                                .lda = H,
                                                .b = inverse,
                                                .ldb = H,
                                                .c = dnormed,
                                                .ldc = H}));
        dh = dnormed;
    }
    const oq_norm_shape shape = {p->run->spec->norm, p->run->spec->norm_eps, T, H};
    OQ_TRY(oq_norm_backward(context, shape, x, p->weights->gain[which], s->stats[which], dh, dx,
                            p->gradients->gain[which], p->gradients->norm_bias[which]));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* dx2 [T, H] += through the MLP. */
static oq_code mlp_half_backward(oq_context *context, const pass *p, const oq_real *dy, oq_real *dx2)
{
    const oq_saved *s = p->saved;
    const oq_block_spec *spec = p->run->spec;
    const int64_t T = p->run->tokens, H = spec->hidden, F = spec->ffn;
    oq_real *du, *dup, *dh;
    OQ_NEW(context, du, T * F);
    OQ_NEW(context, dup, spec->gated ? T * F : 0);
    OQ_NEW(context, dh, T * H);
    OQ_TRY(linear_backward(context, p, OQ_DOWN, &s->u_hat, dy, du, false));
    OQ_TRY(oq_act_quant_backward(context, p->run->quantizers->x, s->u, s->u_ranges, du, T, F));
    OQ_TRY(oq_rotate_input(context, spec, OQ_DOWN, du, T));
    if (spec->gated) {
        oq_activation_backward(context, spec->activation, s->gate, s->up, du, du, dup, T * F);
        OQ_TRY(linear_backward(context, p, OQ_GATE, &s->h_hat[OQ_NORM2], du, dh, false));
        OQ_TRY(linear_backward(context, p, OQ_UP, &s->h_hat[OQ_NORM2], dup, dh, true));
    } else {
        oq_activation_backward(context, spec->activation, s->up, NULL, du, du, NULL, T * F);
        OQ_TRY(linear_backward(context, p, OQ_UP, &s->h_hat[OQ_NORM2], du, dh, false));
    }
    return norm_backward(context, p, OQ_NORM2, s->x2, dh, dx2);
}

/* Back from attention to q, k, v as their linears gave them: quantizers, then RoPE. */
static oq_code heads_backward(oq_context *context, const pass *p, const oq_real *dattended, oq_real *dq,
                              oq_real *dk, oq_real *dv)
{
    const oq_saved *s = p->saved;
    const oq_block_spec *spec = p->run->spec;
    const oq_activation_quantizers *quant = p->run->quantizers;
    const int64_t T = p->run->tokens, d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    const oq_attention_shape shape = {T, n, m, d};
    OQ_TRY(oq_attention_backward(context, shape, s->q_hat, s->k_hat, s->v_hat, s->attended, s->log_sum, dattended,
                                 dq, dk, dv));
    OQ_TRY(oq_act_quant_backward(context, quant->q, s->q, s->q_ranges, dq, T * n, d));
    OQ_TRY(oq_act_quant_backward(context, quant->k, s->k, s->k_ranges, dk, T * m, d));
    OQ_TRY(oq_act_quant_backward(context, quant->v, s->v, s->v_ranges, dv, T * m, d));
    OQ_TRY(oq_rotate_qk(context, spec, dq, dk, T));
    if (spec->rope) {
        oq_rope_backward(context, p->run->rope, dq, T, n, d);
        oq_rope_backward(context, p->run->rope, dk, T, m, d);
    }
    return OQ_OK;
}

/* Nothing before norm1 is learned, so its input gradient is needed for its own parameters alone. */
static bool norm1_is_learned(const oq_block_gradients *g)
{
    return g->gain[OQ_NORM1] || g->norm_bias[OQ_NORM1] || g->map_inverse[OQ_NORM1];
}

static oq_code attention_half_backward(oq_context *context, const pass *p, const oq_real *dx2)
{
    const oq_saved *s = p->saved;
    const oq_block_spec *spec = p->run->spec;
    const int64_t T = p->run->tokens, H = spec->hidden, d = spec->head_dim;
    const int64_t q_width = spec->heads * d, kv_width = spec->kv_heads * d;
    oq_real *dattended, *dq, *dk, *dv, *dh = NULL;
    OQ_NEW(context, dattended, T * q_width);
    OQ_NEW(context, dq, T * q_width);
    OQ_NEW(context, dk, T * kv_width);
    OQ_NEW(context, dv, T * kv_width);
    if (norm1_is_learned(p->gradients)) OQ_NEW(context, dh, T * H);
    OQ_TRY(linear_backward(context, p, OQ_O, &s->attended_hat, dx2, dattended, false));
    OQ_TRY(oq_act_quant_backward(context, p->run->quantizers->x, s->mixed, s->attended_ranges, dattended, T,
                                 q_width));
    OQ_TRY(oq_rotate_input(context, spec, OQ_O, dattended, T));
    OQ_TRY(heads_backward(context, p, dattended, dq, dk, dv));
    OQ_TRY(linear_backward(context, p, OQ_Q, &s->h_hat[OQ_NORM1], dq, dh, false));
    OQ_TRY(linear_backward(context, p, OQ_K, &s->h_hat[OQ_NORM1], dk, dh, true));
    OQ_TRY(linear_backward(context, p, OQ_V, &s->h_hat[OQ_NORM1], dv, dh, true));
    return dh ? norm_backward(context, p, OQ_NORM1, s->x, dh, NULL) : OQ_OK;
}

oq_code oq_block_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                          const oq_saved *saved, const oq_real *dy, const oq_block_gradients *gradients)
{
    const pass p = {run, weights, saved, gradients};
    const int64_t count = run->tokens * run->spec->hidden;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *dx2;
    OQ_NEW(context, dx2, count);
    memcpy(dx2, dy, sizeof *dx2 * (size_t)count);
    OQ_TRY(mlp_half_backward(context, &p, dy, dx2));
    OQ_TRY(attention_half_backward(context, &p, dx2));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
