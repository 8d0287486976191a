#include "calibrate/options.h"

#include "block/input_map.h"
#include "quant/gradient_products.h"

const char *const oq_site_names[OQ_SITES] = {"norm1",      "norm2",       "vo",         "qk",          "up_down",
                                             "norm1_left", "norm1_right", "o_left",     "o_right",     "norm2_left",
                                             "norm2_right", "down_left",  "down_right"};

static const oq_linear_sites sites_of[OQ_LINEARS] = {
    [OQ_Q] = {OQ_SITE_NORM1, OQ_SITE_QK, true}, [OQ_K] = {OQ_SITE_NORM1, OQ_SITE_QK, false},
    [OQ_V] = {OQ_SITE_NORM1, OQ_SITE_VO, true}, [OQ_O] = {OQ_SITE_VO, -1, false},
    [OQ_GATE] = {OQ_SITE_NORM2, -1, false},     [OQ_UP] = {OQ_SITE_NORM2, OQ_SITE_UP_DOWN, true},
    [OQ_DOWN] = {OQ_SITE_UP_DOWN, -1, false},   [OQ_ROUTER] = {OQ_SITE_NORM2, -1, false},
    [OQ_SHARED_GATE] = {OQ_SITE_NORM2, -1, false}, [OQ_SHARED_UP] = {OQ_SITE_NORM2, -1, false},
    [OQ_SHARED_DOWN] = {OQ_SITE_UP_DOWN, -1, false}, [OQ_SHARED_ROUTER] = {OQ_SITE_NORM2, -1, false},
};

oq_linear_sites oq_sites_of(const oq_block_spec *spec, int linear)
{
    oq_linear_sites sites = sites_of[linear];
    if (sites.columns == OQ_SITE_NORM2 && spec->residual == OQ_SHARED) sites.columns = OQ_SITE_NORM1;
    return sites;
}

bool oq_quantizes(const oq_options *options, int linear)
{
    return oq_is_quantized(oq_scheme_of(options, linear).quantizer);
}

oq_map_kind oq_map_at(const oq_block_spec *spec, const oq_options *options, int site)
{
    return site == OQ_SITE_NORM2 && !oq_has_norm(spec, OQ_NORM2) ? OQ_MAP_NONE : options->map[site];
}

int64_t oq_repeat_of(const oq_block_spec *spec, int site, int linear)
{
    const bool query_heads = (site == OQ_SITE_VO && linear == OQ_O) || (site == OQ_SITE_QK && linear == OQ_Q);
    return query_heads ? spec->heads / spec->kv_heads : 1;
}

oq_affine oq_site_geometry(const oq_block_spec *spec, int site)
{
    if (site >= OQ_SITE_FACTORS) {
        const oq_kronecker size = oq_input_factors(spec, (site - OQ_SITE_FACTORS) / 2);
        return (oq_affine){.blocks = 1, .width = (site - OQ_SITE_FACTORS) % 2 ? size.b : size.a};
    }
    switch (site) {
    case OQ_SITE_VO: return (oq_affine){.blocks = spec->kv_heads, .width = spec->head_dim};
    case OQ_SITE_QK:
        return (oq_affine){.blocks = spec->kv_heads, .width = spec->head_dim, .rotary = oq_rotary_dim(spec)};
    case OQ_SITE_UP_DOWN: return (oq_affine){.blocks = 1, .width = spec->ffn};
    default: return (oq_affine){.blocks = 1, .width = spec->hidden};
    }
}

bool oq_site_has_shift(const oq_block_spec *spec, const oq_options *options, const oq_block_weights *weights,
                       int site)
{
    if (!options->shift || oq_map_at(spec, options, site) == OQ_MAP_NONE) return false;
    const oq_real *const producer[OQ_SITES] = {[OQ_SITE_NORM1] = weights->norm_bias[OQ_NORM1],
                                               [OQ_SITE_NORM2] = weights->norm_bias[OQ_NORM2],
                                               [OQ_SITE_VO] = weights->bias[OQ_V]};
    if (!producer[site]) return false;
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(spec, i) && oq_sites_of(spec, i).columns == site && !weights->bias[i]) return false;
    return true;
}

static oq_code check_quantizer(oq_context *context, const char *what, oq_quantizer quantizer)
{
    if ((quantizer.bits >= 2 && quantizer.bits <= 8) || quantizer.bits >= 16) return OQ_OK;
    return oq_fail(context, OQ_INVALID_ARGUMENT, "%s: bits must be 2..8, or 16 for none; got %d", what,
                   quantizer.bits);
}

bool oq_rounds_weights(const oq_block_spec *spec, const oq_options *options)
{
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(spec, i) && oq_quantizes(options, i)) return true;
    return false;
}

static oq_code check_scheme(oq_context *context, const oq_options *options, int linear)
{
    const oq_scheme scheme = oq_scheme_of(options, linear);
    const bool own = options->own.of[linear].quantizer.bits;
    OQ_TRY(check_quantizer(context, own ? oq_linear_names[linear] : "weights", scheme.quantizer));
    if (scheme.group_size >= 0) return OQ_OK;
    return oq_fail(context, OQ_INVALID_ARGUMENT, "group_size must be >= 0, got %lld", (long long)scheme.group_size);
}

static oq_code check_maps(oq_context *context, const oq_block_spec *spec, const oq_options *options)
{
    for (int site = 0; site < OQ_SITES; site++) {
        const oq_map_kind kind = options->map[site];
        const bool per_head = site == OQ_SITE_VO || site == OQ_SITE_QK;
        const bool paired = kind == OQ_MAP_TIED || kind == OQ_MAP_ROTATION;
        if (paired && (site != OQ_SITE_QK || spec->head_dim % 2 || oq_rotary_dim(spec) % 2))
            return oq_fail(context, OQ_INVALID_ARGUMENT, "%s: paired maps are for q and k with an even head_dim",
                           oq_site_names[site]);
        if (site == OQ_SITE_QK && kind != OQ_MAP_NONE && spec->head_norms)
            return oq_fail(context, OQ_UNSUPPORTED, "qk: no map passes the norms of q and k");
        if (kind == OQ_MAP_DENSE && !per_head && site == OQ_SITE_UP_DOWN)
            return oq_fail(context, OQ_INVALID_ARGUMENT, "up_down: the map between up and down is diagonal");
    }
    for (int site = OQ_SITE_FACTORS; site < OQ_SITES; site++)
        if (options->map[site] != options->map[OQ_SITE_FACTORS])
            return oq_fail(context, OQ_INVALID_ARGUMENT, "%s: the inputs' maps are there for all or for none",
                           oq_site_names[site]);
    if (options->map[OQ_SITE_FACTORS] != OQ_MAP_NONE && !oq_has_norm(spec, OQ_NORM2))
        return oq_fail(context, OQ_UNSUPPORTED, "norm2_left: the MLP shares its norm, and the input, with attention");
    if (options->map[OQ_SITE_FACTORS] != OQ_MAP_NONE && options->map[OQ_SITE_NORM1] == OQ_MAP_DENSE)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "norm1: an online map beside the inputs' Kronecker maps");
    if (spec->experts.count && (options->map[OQ_SITE_UP_DOWN] != OQ_MAP_NONE ||
                                options->map[OQ_SITE_FACTORS] != OQ_MAP_NONE))
        return oq_fail(context, OQ_UNSUPPORTED, "%s: experts have no map of their own",
                       options->map[OQ_SITE_UP_DOWN] != OQ_MAP_NONE ? "up_down" : "input_map");
    if (options->map[OQ_SITE_UP_DOWN] != OQ_MAP_NONE && !spec->gated)
        return oq_fail(context, OQ_UNSUPPORTED, "up_down: only gated MLPs are linear between up and down");
    return OQ_OK;
}

oq_code oq_check_training(oq_context *context, const oq_options *o)
{
    for (int i = 0; i < OQ_LINEARS; i++) OQ_TRY(check_scheme(context, o, i));
    OQ_TRY(check_quantizer(context, "activations", o->activation.x));
    OQ_TRY(check_quantizer(context, "q", o->activation.q));
    OQ_TRY(check_quantizer(context, "k", o->activation.k));
    OQ_TRY(check_quantizer(context, "v", o->activation.v));
    if (o->activation.sink_tokens < 0)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "sink_tokens must be >= 0, got %lld",
                       (long long)o->activation.sink_tokens);
    if (o->epochs < 0 || o->batch_size < 1)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "epochs must be >= 0 and batch_size >= 1, got %lld and %lld",
                       (long long)o->epochs, (long long)o->batch_size);
    if (o->patience < 0)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "patience must be >= 0, got %lld", (long long)o->patience);
    if (!(o->margin > 0 && o->margin < 1))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "margin must be in (0, 1), got %g", o->margin);
    if (!(o->stability > 0) || !isfinite(o->stability))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "stability must be positive, got %g", o->stability);
    if (!(o->alpha >= 0 && o->alpha <= 1))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "alpha must be in [0, 1], got %g", o->alpha);
    const double rates[] = {o->lr_lwc, o->lr_let, o->lr_rounding};
    for (int i = 0; i < 3; i++)
        if (!(rates[i] >= 0) || !isfinite(rates[i]))
            return oq_fail(context, OQ_INVALID_ARGUMENT, "learning rates must be finite and >= 0, got %g",
                           rates[i]);
    if (!(o->gptq.damping > 0) || !isfinite(o->gptq.damping))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "damping must be positive, got %g", o->gptq.damping);
    if (!oq_has_products(o->products))
        return oq_fail(context, OQ_UNSUPPORTED, "products %s: this processor has none, or oneDNN is missing",
                       oq_products_names[o->products]);
    if (o->byte_gradients && !oq_has_byte_gradients(1))
        return oq_fail(context, OQ_UNSUPPORTED, "gradients int8: this processor has no such products");
    return OQ_OK;
}

oq_code oq_check_options(oq_context *context, const oq_block_spec *spec, const oq_options *options)
{
    OQ_TRY(oq_check_training(context, options));
    if (spec->experts.count && (options->search || options->rounding == OQ_ROUNDING_GPTQ))
        return oq_fail(context, OQ_UNSUPPORTED,
                       "experts: Gram matrices of each expert's tokens are not gathered, so neither a searched start "
                       "nor rounding gptq; nearest: start paper, rounding nearest or learned");
    return check_maps(context, spec, options);
}
