#include "block/block.h"

const oq_activation_quantizers oq_in_float = {
    .x = {.bits = 16}, .q = {.bits = 16}, .k = {.bits = 16}, .v = {.bits = 16}};

const char *const oq_linear_names[OQ_LINEARS] = {
    "q", "k", "v", "o", "gate", "up", "down", "router", "shared_gate", "shared_up", "shared_down", "shared_router",
};
const char *const oq_norm_names[OQ_NORMS] = {"norm1", "norm2", "post1", "post2", "q_norm", "k_norm"};
const char *const oq_input_names[OQ_INPUTS] = {"norm1", "o", "norm2", "down"};

bool oq_has_linear(const oq_block_spec *spec, int linear)
{
    switch (linear) {
    case OQ_GATE: return spec->gated;
    case OQ_ROUTER: return spec->experts.count > 0;
    case OQ_SHARED_GATE: return spec->experts.shared_ffn > 0 && spec->gated;
    case OQ_SHARED_UP:
    case OQ_SHARED_DOWN:
    case OQ_SHARED_ROUTER: return spec->experts.shared_ffn > 0;
    default: return true;
    }
}

oq_linear_shape oq_shape_of(const oq_block_spec *spec, int linear)
{
    const int64_t q = spec->heads * spec->head_dim, kv = spec->kv_heads * spec->head_dim;
    const int64_t stacked = spec->experts.count ? spec->experts.count : 1;
    switch (linear) {
    case OQ_Q: return (oq_linear_shape){q, spec->hidden};
    case OQ_K:
    case OQ_V: return (oq_linear_shape){kv, spec->hidden};
    case OQ_O: return (oq_linear_shape){spec->hidden, q};
    case OQ_DOWN: return (oq_linear_shape){stacked * spec->hidden, spec->ffn};
    case OQ_ROUTER: return (oq_linear_shape){spec->experts.count, spec->hidden};
    case OQ_SHARED_GATE:
    case OQ_SHARED_UP: return (oq_linear_shape){spec->experts.shared_ffn, spec->hidden};
    case OQ_SHARED_DOWN: return (oq_linear_shape){spec->hidden, spec->experts.shared_ffn};
    case OQ_SHARED_ROUTER: return (oq_linear_shape){1, spec->hidden};
    default: return (oq_linear_shape){stacked * spec->ffn, spec->hidden};
    }
}

bool oq_has_norm(const oq_block_spec *spec, int norm)
{
    switch (norm) {
    case OQ_NORM1: return true;
    case OQ_NORM2: return spec->residual != OQ_SHARED;
    case OQ_NORM_Q:
    case OQ_NORM_K: return spec->head_norms;
    default: return spec->post_norms;
    }
}

int64_t oq_norm_width(const oq_block_spec *spec, int norm)
{
    return norm == OQ_NORM_Q || norm == OQ_NORM_K ? spec->head_dim : spec->hidden;
}

int oq_mlp_norm(const oq_block_spec *spec) { return spec->residual == OQ_SHARED ? OQ_NORM1 : OQ_NORM2; }

int64_t oq_rotary_dim(const oq_block_spec *spec) { return spec->rotary_dim ? spec->rotary_dim : spec->head_dim; }

static oq_code check_scores(oq_context *context, const oq_score_rule *rule)
{
    if (rule->window < 0)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: window must be >= 0, got %lld", (long long)rule->window);
    if (!(rule->scale >= 0) || !(rule->cap >= 0) || !isfinite(rule->scale) || !isfinite(rule->cap))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: attention_scale and score_cap must be finite and >= 0, "
                       "got %g and %g", rule->scale, rule->cap);
    return OQ_OK;
}

static oq_code check_experts(oq_context *context, const oq_block_spec *spec)
{
    const oq_experts *e = &spec->experts;
    const int64_t most = 1 << 12;
    if (e->count < 0 || e->count > most)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: num_experts must be 0..%lld, got %lld", (long long)most,
                       (long long)e->count);
    if (e->count ? e->used < 1 || e->used > e->count : e->used != 0)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: experts_per_token must be 1..%lld, got %lld",
                       (long long)e->count, (long long)e->used);
    if (e->shared_ffn < 0 || e->shared_ffn > 1 << 24 || (e->shared_ffn && !e->count))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: shared_ffn_size %lld beside %lld experts",
                       (long long)e->shared_ffn, (long long)e->count);
    if (e->count && (spec->post_norms || spec->rotate_down))
        return oq_fail(context, OQ_UNSUPPORTED, "spec: experts with a norm or a rotation of their own");
    return OQ_OK;
}

oq_code oq_check_spec(oq_context *context, const oq_block_spec *spec)
{
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"hidden_size", spec->hidden},
                 {"ffn_size", spec->ffn},
                 {"num_heads", spec->heads},
                 {"num_kv_heads", spec->kv_heads},
                 {"head_dim", spec->head_dim}};
    const int64_t largest = 1 << 24;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > largest)
            return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: %s must be 1..%lld, got %lld", sizes[i].name,
                           (long long)largest, (long long)sizes[i].value);
    if (spec->heads % spec->kv_heads)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: num_heads %lld is no multiple of num_kv_heads %lld",
                       (long long)spec->heads, (long long)spec->kv_heads);
    const int64_t rotary = oq_rotary_dim(spec);
    if (spec->rope && (rotary % 2 || rotary < 0 || rotary > spec->head_dim))
        return oq_fail(context, OQ_INVALID_ARGUMENT,
                       "spec: rotary embedding needs an even number of dims of head_dim %lld, got %lld",
                       (long long)spec->head_dim, (long long)rotary);
    if (!(spec->norm_eps >= 0))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "spec: norm_eps must be >= 0, got %g", spec->norm_eps);
    OQ_TRY(check_experts(context, spec));
    return check_scores(context, &spec->scores);
}

int oq_input_of(const oq_block_spec *spec, int linear)
{
    switch (linear) {
    case OQ_O: return OQ_INPUT_O;
    case OQ_DOWN:
    case OQ_SHARED_DOWN: return OQ_INPUT_DOWN;
    case OQ_Q:
    case OQ_K:
    case OQ_V: return OQ_INPUT_NORM1;
    default: return oq_mlp_norm(spec) == OQ_NORM1 ? OQ_INPUT_NORM1 : OQ_INPUT_NORM2;
    }
}
