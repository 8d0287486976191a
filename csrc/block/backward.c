#include <string.h>

#include "block/act_quant.h"
#include "block/block.h"
#include "block/experts.h"
#include "block/input_map.h"
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
    oq_real *dh_float; /* [T, H] of what routers read in float, beside its quantized twin; NULL: nothing does */
} pass;

/* Back through an input's quantizer and its map: d [T, width], x before and behind the map, where `beside` [T, width]
 * joins, the gradient of those who read it in float; NULL: nobody does. */
static oq_code input_backward(oq_context *context, const pass *p, int input, const oq_real *x,
                              const oq_real *mapped, const oq_range *ranges, const oq_real *beside, oq_real *d)
{
    const int64_t T = p->run->tokens;
    const oq_kronecker size = oq_input_factors(p->run->spec, input);
    OQ_TRY(oq_act_quant_backward(context, p->run->quantizers->x, p->weights->clip[input], mapped, ranges, d,
                                 p->gradients->clip[input], T, size.a * size.b));
    if (beside) oq_add(d, beside, T * size.a * size.b);
    return oq_input_map_backward(context, p->run->spec, p->weights, p->gradients, input, x, d, T);
}

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
    OQ_TRY(input_backward(context, p, which == OQ_NORM1 ? OQ_INPUT_NORM1 : OQ_INPUT_NORM2, s->normed[which],
                          s->h[which], s->h_ranges[which],
                          which == oq_mlp_norm(p->run->spec) ? p->dh_float : NULL, dh));
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

/* *d [rows, width], the gradient of a norm behind a linear, becomes that of the linear; without a norm it stays. */
static oq_code back_to_linear(oq_context *context, const pass *p, int norm, int64_t rows, const oq_real **d)
{
    const oq_block_spec *spec = p->run->spec;
    if (!oq_has_norm(spec, norm)) return OQ_OK;
    const oq_norm_shape shape = {spec->norm, spec->norm_eps, rows, oq_norm_width(spec, norm)};
    oq_real *draw;
    OQ_NEW_ZERO(context, draw, rows * shape.width);
    OQ_TRY(oq_norm_backward(context, shape, p->saved->raw[norm], p->weights->gain[norm], p->saved->stats[norm], *d,
                            draw, NULL, NULL));
    *d = draw;
    return OQ_OK;
}

/* dh [T, H] = gradient of what the MLP reads; NULL: not wanted. */
static oq_code mlp_half_backward(oq_context *context, const pass *p, const oq_real *dy, oq_real *dh)
{
    const oq_saved *s = p->saved;
    const oq_block_spec *spec = p->run->spec;
    const int64_t T = p->run->tokens, F = spec->ffn;
    const oq_forms *h = &s->h_hat[oq_mlp_norm(spec)];
    oq_real *du, *dup;
    if (s->experts)
        return oq_experts_backward(context, p->run, p->weights, p->gradients, s->experts, h, dy, dh,
                                   dh ? p->dh_float : NULL);
    OQ_NEW(context, du, T * F);
    OQ_NEW(context, dup, spec->gated ? T * F : 0);
    OQ_TRY(back_to_linear(context, p, OQ_POST2, T, &dy));
    OQ_TRY(linear_backward(context, p, OQ_DOWN, &s->u_hat, dy, du, false));
    OQ_TRY(input_backward(context, p, OQ_INPUT_DOWN, s->u, s->down_in, s->u_ranges, NULL, du));
    OQ_TRY(oq_rotate_input(context, spec, OQ_DOWN, du, T));
    if (!spec->gated) {
        oq_activation_backward(context, spec->activation, s->up, NULL, du, du, NULL, T * F);
        return linear_backward(context, p, OQ_UP, h, du, dh, false);
    }
    oq_activation_backward(context, spec->activation, s->gate, s->up, du, du, dup, T * F);
    OQ_TRY(linear_backward(context, p, OQ_GATE, h, du, dh, false));
    return linear_backward(context, p, OQ_UP, h, dup, dh, true);
}

/* Back from attention to q, k, v as RoPE, or without it their linears and norms, gave them. */
static oq_code heads_backward(oq_context *context, const pass *p, const oq_real *dattended, oq_real *dq,
                              oq_real *dk, oq_real *dv)
{
    const oq_saved *s = p->saved;
    const oq_block_spec *spec = p->run->spec;
    const oq_activation_quantizers *quant = p->run->quantizers;
    const int64_t T = p->run->tokens, d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    const oq_attention_shape shape = {
        .tokens = T, .heads = n, .kv_heads = m, .head_dim = d, .rule = spec->scores, .bf16 = p->run->bf16};
    OQ_TRY(oq_attention_backward(context, shape, s->q_hat, s->k_hat, s->v_hat, s->attended, s->log_sum, dattended,
                                 dq, dk, dv));
    OQ_TRY(oq_act_quant_backward(context, quant->q, NULL, s->q, s->q_ranges, dq, NULL, T * n, d));
    OQ_TRY(oq_kv_quant_backward(context, p->run, quant->k, s->k, s->k_ranges, dk));
    OQ_TRY(oq_kv_quant_backward(context, p->run, quant->v, s->v, s->v_ranges, dv));
    OQ_TRY(oq_rotate_qk(context, spec, dq, dk, T));
    if (spec->rope) {
        oq_rope_backward(context, p->run->rope, dq, T, n, d);
        oq_rope_backward(context, p->run->rope, dk, T, m, d);
    }
    return OQ_OK;
}

/* Whether the gradient of what a norm gives is needed: for its own parameters, or where it reads x for x's. */
static bool is_wanted(const oq_block_gradients *g, int norm)
{
    const int input = norm == OQ_NORM1 ? OQ_INPUT_NORM1 : OQ_INPUT_NORM2;
    return g->x || g->gain[norm] || g->norm_bias[norm] || g->map_inverse[norm] || g->left[input] || g->clip[input];
}

/* dh [T, H] = gradient of what q, k and v read, added where the MLP left its own; NULL: not wanted. */
static oq_code attention_half_backward(oq_context *context, const pass *p, const oq_real *dx2, oq_real *dh,
                                       bool accumulate)
{
    const oq_saved *s = p->saved;
    const oq_block_spec *spec = p->run->spec;
    const int64_t T = p->run->tokens, d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    oq_real *dattended, *dq, *dk, *dv;
    OQ_NEW(context, dattended, T * n * d);
    OQ_NEW(context, dq, T * n * d);
    OQ_NEW(context, dk, T * m * d);
    OQ_NEW(context, dv, T * m * d);
    OQ_TRY(back_to_linear(context, p, OQ_POST1, T, &dx2));
    OQ_TRY(linear_backward(context, p, OQ_O, &s->attended_hat, dx2, dattended, false));
    OQ_TRY(input_backward(context, p, OQ_INPUT_O, s->mixed, s->o_in, s->attended_ranges, NULL, dattended));
    OQ_TRY(oq_rotate_input(context, spec, OQ_O, dattended, T));
    OQ_TRY(heads_backward(context, p, dattended, dq, dk, dv));
    const oq_real *dq_linear = dq, *dk_linear = dk;
    OQ_TRY(back_to_linear(context, p, OQ_NORM_Q, T * n, &dq_linear));
    OQ_TRY(back_to_linear(context, p, OQ_NORM_K, T * m, &dk_linear));
    OQ_TRY(linear_backward(context, p, OQ_Q, &s->h_hat[OQ_NORM1], dq_linear, dh, accumulate));
    OQ_TRY(linear_backward(context, p, OQ_K, &s->h_hat[OQ_NORM1], dk_linear, dh, true));
    return linear_backward(context, p, OQ_V, &s->h_hat[OQ_NORM1], dv, dh, true);
}

/* dx2 [T, H], the gradient of the attention's sum: that of y, and what comes through norm2 where it reads x2. */
static oq_code mlp_to_x2(oq_context *context, const pass *p, const oq_real *dy, oq_real *dh, oq_real **dx2)
{
    const int64_t count = p->run->tokens * p->run->spec->hidden;
    OQ_NEW(context, *dx2, count);
    memcpy(*dx2, dy, sizeof **dx2 * (size_t)count);
    OQ_TRY(mlp_half_backward(context, p, dy, dh));
    return norm_backward(context, p, OQ_NORM2, p->saved->x2, dh, *dx2);
}

oq_code oq_block_backward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                          const oq_saved *saved, const oq_real *dy, const oq_block_gradients *gradients)
{
    pass p = {run, weights, saved, gradients, NULL};
    const int64_t count = run->tokens * run->spec->hidden;
    const oq_residual residual = run->spec->residual;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *dx2 = NULL, *dh1 = NULL, *dh2 = NULL; /* of x2, of what norm1 and norm2 give */
    if (run->spec->experts.count) OQ_NEW(context, p.dh_float, count);
    if (is_wanted(gradients, OQ_NORM1)) OQ_NEW(context, dh1, count);
    if (residual == OQ_SEQUENTIAL || is_wanted(gradients, OQ_NORM2)) OQ_NEW(context, dh2, count);
    if (residual == OQ_SEQUENTIAL)
        OQ_TRY(mlp_to_x2(context, &p, dy, dh2, &dx2));
    else
        OQ_TRY(mlp_half_backward(context, &p, dy, residual == OQ_SHARED ? dh1 : dh2));
    /* What passes by both halves. */
    if (gradients->x) memcpy(gradients->x, dx2 ? dx2 : dy, sizeof *dy * (size_t)count);
    if (residual == OQ_PARALLEL && dh2) OQ_TRY(norm_backward(context, &p, OQ_NORM2, saved->x, dh2, gradients->x));
    OQ_TRY(attention_half_backward(context, &p, dx2 ? dx2 : dy, dh1, residual == OQ_SHARED));
    if (dh1) OQ_TRY(norm_backward(context, &p, OQ_NORM1, saved->x, dh1, gradients->x));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
