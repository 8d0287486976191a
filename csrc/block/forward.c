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

/* A tensor and its quantized twin: one allocation where the quantizer is off. */
static oq_code create_pair(oq_context *context, oq_quantizer quantizer, int64_t rows, int64_t width, oq_real **x,
                           oq_real **x_hat, oq_range **ranges)
{
    OQ_NEW(context, *x, rows * width);
    *x_hat = *x;
    *ranges = NULL;
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    OQ_NEW(context, *x_hat, rows * width);
    OQ_NEW(context, *ranges, rows);
    return OQ_OK;
}

/* A norm behind a linear: its input and its statistics. */
static oq_code create_norm(oq_context *context, const oq_block_spec *spec, int norm, int64_t rows, oq_saved *s)
{
    if (!oq_has_norm(spec, norm)) return OQ_OK;
    OQ_NEW(context, s->stats[norm], rows);
    OQ_NEW(context, s->raw[norm], rows * oq_norm_width(spec, norm));
    return OQ_OK;
}

/* The input of o or down: as it comes, behind the rotation, behind the map; the same where there is none. */
static oq_code create_stages(oq_context *context, const oq_block_run *run, int linear, oq_real **raw,
                             oq_real **rotated, oq_real **mapped, oq_forms *forms, oq_range **ranges)
{
    const int64_t width = oq_shape_of(run->spec, linear).in, count = run->tokens * width;
    OQ_TRY(oq_input_create(context, run, run->tokens, width, mapped, forms, ranges));
    *rotated = *mapped;
    if (run->maps) OQ_NEW(context, *rotated, count);
    *raw = *rotated;
    if (oq_has_rotation(run->spec, linear)) OQ_NEW(context, *raw, count);
    return OQ_OK;
}

static oq_code create_attention(oq_context *context, const oq_block_run *run, oq_saved *s)
{
    const oq_block_spec *spec = run->spec;
    const oq_activation_quantizers *quant = run->quantizers;
    const int64_t T = run->tokens, d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    OQ_TRY(create_pair(context, quant->q, T * n, d, &s->q, &s->q_hat, &s->q_ranges));
    OQ_TRY(create_pair(context, quant->k, T * m, d, &s->k, &s->k_hat, &s->k_ranges));
    OQ_TRY(create_pair(context, quant->v, T * m, d, &s->v, &s->v_hat, &s->v_ranges));
    OQ_TRY(create_norm(context, spec, OQ_NORM_Q, T * n, s));
    OQ_TRY(create_norm(context, spec, OQ_NORM_K, T * m, s));
    OQ_NEW(context, s->log_sum, n * T);
    return create_stages(context, run, OQ_O, &s->attended, &s->mixed, &s->o_in, &s->attended_hat,
                         &s->attended_ranges);
}

oq_code oq_saved_create(oq_context *context, const oq_block_run *run, oq_saved *saved)
{
    const oq_block_spec *spec = run->spec;
    const int64_t T = run->tokens, H = spec->hidden, F = spec->ffn;
    memset(saved, 0, sizeof *saved);
    for (int i = 0; i < OQ_INPUT_NORMS; i++) {
        if (!oq_has_norm(spec, i)) continue;
        OQ_NEW(context, saved->stats[i], T);
        OQ_NEW(context, saved->normed[i], T * H);
        OQ_TRY(oq_input_create(context, run, T, H, &saved->h[i], &saved->h_hat[i], &saved->h_ranges[i]));
    }
    OQ_TRY(create_attention(context, run, saved));
    OQ_TRY(create_norm(context, spec, OQ_POST1, T, saved));
    OQ_TRY(create_norm(context, spec, OQ_POST2, T, saved));
    OQ_NEW(context, saved->x2, T * H);
    if (spec->experts.count) return oq_saved_experts_create(context, run, &saved->experts);
    if (spec->gated) OQ_NEW(context, saved->gate, T * F);
    OQ_NEW(context, saved->up, T * F);
    return create_stages(context, run, OQ_DOWN, &saved->activated, &saved->u, &saved->down_in, &saved->u_hat,
                         &saved->u_ranges);
}

/* h_hat[which] = quantized norm(x), behind the online map where there is one. */
static oq_code normalize(oq_context *context, const oq_block_run *run, const oq_block_weights *weights, int which,
                         const oq_real *x, oq_saved *s)
{
    const int64_t T = run->tokens, H = run->spec->hidden;
    const oq_norm_shape shape = {run->spec->norm, run->spec->norm_eps, T, H};
    const oq_real *inverse = weights->map_inverse[which];
    const int input = which == OQ_NORM1 ? OQ_INPUT_NORM1 : OQ_INPUT_NORM2;
    oq_norm_forward(context, shape, x, weights->gain[which], weights->norm_bias[which],
                    inverse || weights->left[input] ? s->normed[which] : s->h[which], s->stats[which]);
    if (inverse)
        OQ_TRY(oq_gemm(context, &(oq_gemm_args){.m = T,
                                                .n = H,
                                                .k = H,
                                                .alpha = 1,
                                                .a = s->normed[which],
                                                .lda = H,
                                                .b = inverse,
                                                .ldb = H,
                                                .c = s->h[which],
                                                .ldc = H}));
    OQ_TRY(oq_input_map(context, run->spec, weights, input, s->normed[which], s->h[which], T));
    return oq_input_forms(context, run->quantizers->x, weights->clip[input], s->h[which], &s->h_hat[which],
                          s->h_ranges[which], T, H);
}

/* A text: its own tokens [at, at + length) of the window, and those it begins with, [root, root + shared). */
typedef struct {
    int64_t root, shared, at, length;
} text;

/* Keys or values [shared + length, width] of a text: where they lie, or brought together. */
static oq_code text_keys(oq_context *context, const text *t, const oq_real *x, int64_t width, const oq_real **keys)
{
    oq_real *together;
    *keys = x + t->at * width;
    if (!t->shared) return OQ_OK;
    OQ_NEW(context, together, (t->shared + t->length) * width);
    memcpy(together, x + t->root * width, sizeof *x * (size_t)(t->shared * width));
    memcpy(together + t->shared * width, x + t->at * width, sizeof *x * (size_t)(t->length * width));
    *keys = together;
    return OQ_OK;
}

static oq_code attend_text(oq_context *context, const oq_block_run *run, const text *t, oq_saved *s)
{
    const oq_block_spec *spec = run->spec;
    const int64_t d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    const oq_attention_shape shape = {.tokens = t->shared + t->length,
                                      .first = t->shared,
                                      .heads = n,
                                      .kv_heads = m,
                                      .head_dim = d,
                                      .rule = spec->scores,
                                      /* Kernels are made for every length anew: not worth it for texts of many. */
                                      .bf16 = run->bf16 && !run->lengths};
    const oq_mark mark = oq_arena_mark(context->arena);
    const oq_real *k, *v;
    OQ_TRY(text_keys(context, t, s->k_hat, m * d, &k));
    OQ_TRY(text_keys(context, t, s->v_hat, m * d, &v));
    OQ_TRY(oq_attention_forward(context, shape, s->q_hat + t->at * n * d, k, v, s->attended + t->at * n * d,
                                s->log_sum + t->at * n));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* attended [T, n d]: every text of the window by itself. */
static oq_code attend(oq_context *context, const oq_block_run *run, oq_saved *s)
{
    text t = {0};
    for (int64_t i = 0; i < oq_texts(run); i++) {
        t.length = oq_text_length(run, i);
        t.shared = oq_text_shared(run, i);
        if (!t.shared) t.root = t.at;
        OQ_TRY(attend_text(context, run, &t, s));
        t.at += t.length;
    }
    return OQ_OK;
}

/* y [rows, width] = a linear of x, behind its norm where it has one. */
static oq_code linear_and_norm(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                               int linear, int norm, const oq_forms *x, int64_t rows, oq_saved *s, oq_real *y)
{
    if (!oq_has_norm(run->spec, norm)) return oq_block_linear_forward(context, run, weights, linear, x, y);
    const oq_norm_shape shape = {run->spec->norm, run->spec->norm_eps, rows, oq_norm_width(run->spec, norm)};
    OQ_TRY(oq_block_linear_forward(context, run, weights, linear, x, s->raw[norm]));
    oq_norm_forward(context, shape, s->raw[norm], weights->gain[norm], weights->norm_bias[norm], y, s->stats[norm]);
    return OQ_OK;
}

static oq_code attention_half(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                              oq_saved *s)
{
    const oq_block_spec *spec = run->spec;
    const oq_activation_quantizers *quant = run->quantizers;
    const int64_t T = run->tokens, d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    const oq_forms *h = &s->h_hat[OQ_NORM1];
    OQ_TRY(linear_and_norm(context, run, weights, OQ_Q, OQ_NORM_Q, h, T * n, s, s->q));
    OQ_TRY(linear_and_norm(context, run, weights, OQ_K, OQ_NORM_K, h, T * m, s, s->k));
    OQ_TRY(oq_block_linear_forward(context, run, weights, OQ_V, h, s->v));
    if (spec->rope) {
        oq_rope_forward(context, run->rope, s->q, T, n, d);
        oq_rope_forward(context, run->rope, s->k, T, m, d);
    }
    OQ_TRY(oq_rotate_qk(context, spec, s->q, s->k, T));
    OQ_TRY(oq_act_quant_forward(context, quant->q, NULL, s->q, s->q_hat, s->q_ranges, T * n, d));
    OQ_TRY(oq_kv_quant_forward(context, run, quant->k, s->k, s->k_hat, s->k_ranges));
    OQ_TRY(oq_kv_quant_forward(context, run, quant->v, s->v, s->v_hat, s->v_ranges));
    OQ_TRY(attend(context, run, s));
    OQ_TRY(oq_rotated_input(context, spec, OQ_O, s->attended, s->mixed, T));
    OQ_TRY(oq_input_map(context, spec, weights, OQ_INPUT_O, s->mixed, s->o_in, T));
    return oq_input_forms(context, quant->x, weights->clip[OQ_INPUT_O], s->o_in, &s->attended_hat,
                          s->attended_ranges, T, n * d);
}

/* y [T, H] = what the MLP adds. */
static oq_code mlp_half(oq_context *context, const oq_block_run *run, const oq_block_weights *weights, oq_saved *s,
                        oq_real *y)
{
    const int64_t T = run->tokens, F = run->spec->ffn;
    const int norm = oq_mlp_norm(run->spec);
    const oq_forms *h = &s->h_hat[norm];
    if (s->experts) return oq_experts_forward(context, run, weights, s->h[norm], h, s->experts, y);
    if (run->spec->gated) OQ_TRY(oq_block_linear_forward(context, run, weights, OQ_GATE, h, s->gate));
    OQ_TRY(oq_block_linear_forward(context, run, weights, OQ_UP, h, s->up));
    oq_activation_forward(context, run->spec->activation, s->gate ? s->gate : s->up, s->gate ? s->up : NULL,
                          s->activated, T * F);
    OQ_TRY(oq_rotated_input(context, run->spec, OQ_DOWN, s->activated, s->u, T));
    OQ_TRY(oq_input_map(context, run->spec, weights, OQ_INPUT_DOWN, s->u, s->down_in, T));
    OQ_TRY(oq_input_forms(context, run->quantizers->x, weights->clip[OQ_INPUT_DOWN], s->down_in, &s->u_hat,
                          s->u_ranges, T, F));
    return linear_and_norm(context, run, weights, OQ_DOWN, OQ_POST2, &s->u_hat, T, s, y);
}

oq_code oq_block_forward(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                         const oq_real *x, oq_saved *saved, oq_real *y)
{
    const int64_t T = run->tokens, count = T * run->spec->hidden;
    const oq_residual residual = run->spec->residual;
    saved->x = x;
    OQ_TRY(normalize(context, run, weights, OQ_NORM1, x, saved));
    OQ_TRY(attention_half(context, run, weights, saved));
    OQ_TRY(linear_and_norm(context, run, weights, OQ_O, OQ_POST1, &saved->attended_hat, T, saved, saved->x2));
    oq_add(saved->x2, x, count);
    if (residual != OQ_SHARED)
        OQ_TRY(normalize(context, run, weights, OQ_NORM2, residual == OQ_PARALLEL ? x : saved->x2, saved));
    OQ_TRY(mlp_half(context, run, weights, saved, y));
    oq_add(y, saved->x2, count);
    return OQ_OK;
}

static oq_code check_lengths(oq_context *context, const oq_block_run *run)
{
    int64_t sum = 0, root = 0;
    if (run->shared && !run->lengths) return oq_fail(context, OQ_INVALID_ARGUMENT, "shared: needs lengths");
    for (int64_t i = 0; run->lengths && i < run->texts; i++) {
        const int64_t length = run->lengths[i], shared = oq_text_shared(run, i);
        if (length < 1)
            return oq_fail(context, OQ_INVALID_ARGUMENT, "lengths: %d at %lld, a text has at least one token",
                           (int)length, (long long)i);
        if (!shared) root = length;
        if (shared < 0 || shared > root)
            return oq_fail(context, OQ_INVALID_ARGUMENT, "shared: %d at %lld, the text before has %lld tokens",
                           (int)shared, (long long)i, (long long)root);
        sum += length;
    }
    if (!run->lengths || sum == run->tokens) return OQ_OK;
    return oq_fail(context, OQ_INVALID_ARGUMENT, "lengths: %lld texts of %lld tokens in a window of %lld",
                   (long long)run->texts, (long long)sum, (long long)run->tokens);
}

bool oq_has_maps(const oq_block_weights *weights)
{
    for (int i = 0; i < OQ_INPUTS; i++)
        if (weights->left[i]) return true;
    return false;
}

oq_code oq_block_forward_windows(oq_context *context, const oq_block_run *run, const oq_block_weights *weights,
                                 const oq_real *x, oq_real *y, int64_t samples)
{
    const int64_t window = run->tokens * run->spec->hidden;
    oq_block_run own = *run;
    oq_saved saved;
    own.maps = oq_has_maps(weights);
    OQ_TRY(check_lengths(context, run));
    OQ_TRY(oq_saved_create(context, &own, &saved));
    for (int64_t i = 0; i < samples; i++) {
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(oq_block_forward(context, &own, weights, x + i * window, &saved, y + i * window));
    }
    return OQ_OK;
}
