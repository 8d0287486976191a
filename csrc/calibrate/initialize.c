#include "calibrate/initialize.h"

#include "quant/lwc.h"
#include "transform/let.h"

oq_code oq_channel_stats_create(oq_context *context, oq_channel_stats *stats, const oq_block_spec *spec)
{
    for (int site = 0; site < OQ_SITES; site++) {
        const oq_affine geometry = oq_site_geometry(spec, site);
        stats->lo[site] = stats->hi[site] = NULL;
        stats->magnitude[site] = NULL;
        if (site == OQ_SITE_QK || site >= OQ_SITE_FACTORS || (site == OQ_SITE_NORM2 && !oq_has_norm(spec, OQ_NORM2)) ||
            (site == OQ_SITE_UP_DOWN && spec->experts.count))
            continue;
        OQ_NEW(context, stats->lo[site], geometry.blocks * geometry.width);
        OQ_NEW(context, stats->hi[site], geometry.blocks * geometry.width);
        OQ_NEW_ZERO(context, stats->magnitude[site], geometry.blocks * geometry.width);
        for (int64_t i = 0; i < geometry.blocks * geometry.width; i++) {
            stats->lo[site][i] = (oq_real)INFINITY;
            stats->hi[site][i] = (oq_real)-INFINITY;
        }
    }
    return OQ_OK;
}

/* x [T, heads n]: heads of one group fall on their key/value head's channels. */
static void add_channels(oq_channel_stats *stats, int site, const oq_real *x, int64_t tokens, int64_t heads,
                         int64_t n, int64_t repeat)
{
    oq_real *lo = stats->lo[site], *hi = stats->hi[site];
    double *magnitude = stats->magnitude[site];
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++) {
            const oq_real *from = x + (t * heads + h) * n;
            const int64_t to = h / repeat * n;
            for (int64_t i = 0; i < n; i++) {
                lo[to + i] = oq_min(from[i], lo[to + i]);
                hi[to + i] = oq_max(from[i], hi[to + i]);
                magnitude[to + i] += fabs((double)from[i]);
            }
        }
}

void oq_channel_stats_add(oq_channel_stats *stats, const oq_block_run *run, const oq_saved *saved)
{
    const oq_block_spec *spec = run->spec;
    const int64_t T = run->tokens;
    add_channels(stats, OQ_SITE_NORM1, saved->h[OQ_NORM1], T, 1, spec->hidden, 1);
    if (stats->lo[OQ_SITE_NORM2]) add_channels(stats, OQ_SITE_NORM2, saved->h[OQ_NORM2], T, 1, spec->hidden, 1);
    add_channels(stats, OQ_SITE_VO, saved->attended, T, spec->heads, spec->head_dim, spec->heads / spec->kv_heads);
    if (stats->lo[OQ_SITE_UP_DOWN]) add_channels(stats, OQ_SITE_UP_DOWN, saved->activated, T, 1, spec->ffn, 1);
}

/* largest [blocks n] = max |W_ij| over the rows of every consumer of the site. */
static void consumer_max(const oq_transformed *t, int site, double *largest)
{
    const int64_t n = t->map[site].affine.width;
    for (int linear = 0; linear < OQ_LINEARS; linear++) {
        if (oq_sites_of(t->spec, linear).columns != site || !oq_has_linear(t->spec, linear)) continue;
        if (oq_is_router(linear)) continue; /* what stays in float needs no smaller weights */
        const oq_linear_shape shape = oq_shape_of(t->spec, linear);
        const oq_real *w = oq_unrotated_weight(t, linear);
        const int64_t repeat = oq_repeat_of(t->spec, site, linear);
        for (int64_t r = 0; r < shape.out; r++)
            for (int64_t c = 0; c < shape.in; c++) {
                double *slot = &largest[c / n / repeat * n + c % n];
                *slot = fmax(*slot, fabs((double)w[r * shape.in + c]));
            }
    }
}

oq_code oq_initialize_map(oq_context *context, const oq_map *map, const oq_real *lo, const oq_real *hi,
                          const double *largest, double alpha, oq_real *parameters, oq_real *shift)
{
    const int64_t count = map->affine.blocks * map->affine.width;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *s;
    OQ_NEW(context, s, count);
    for (int64_t i = 0; i < count; i++) {
        const double low = (double)lo[i], high = (double)hi[i], center = shift ? (low + high) / 2 : 0;
        if (shift) shift[i] = (oq_real)center;
        s[i] = oq_let_init(fmax(high - center, center - low), largest[i], alpha);
    }
    oq_map_from_diagonal(map, s, parameters);
    oq_map_floor(map, parameters);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code initialize_site(oq_context *context, const oq_transformed *t, const oq_channel_stats *stats,
                               int site, oq_real *theta)
{
    const oq_map *map = &t->map[site];
    oq_real *parameters = oq_part(t->list, t->list->map[site], theta);
    if (map->kind == OQ_MAP_NONE) return OQ_OK;
    if (site == OQ_SITE_QK || site >= OQ_SITE_FACTORS) {
        oq_map_identity(map, parameters);
        return OQ_OK;
    }
    const oq_mark mark = oq_arena_mark(context->arena);
    double *largest;
    OQ_NEW_ZERO(context, largest, map->affine.blocks * map->affine.width);
    consumer_max(t, site, largest);
    OQ_TRY(oq_initialize_map(context, map, stats->lo[site], stats->hi[site], largest, t->options->alpha,
                             parameters, oq_part(t->list, t->list->shift[site], theta)));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

void oq_fill_clipping(const oq_learnables *list, double value, oq_real *theta)
{
    for (int i = 0; i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        if (e->kind != OQ_LWC_MAX && e->kind != OQ_LWC_MIN && e->kind != OQ_LAC) continue;
        for (int64_t k = 0; k < e->count; k++) theta[e->offset + k] = (oq_real)value;
    }
}

oq_code oq_initialize(oq_context *context, const oq_transformed *t, const oq_channel_stats *stats, oq_real *theta)
{
    for (int64_t i = t->list->adaptive; i < t->list->total; i++) theta[i] = 0; /* rounding starts at nearest */
    oq_fill_clipping(t->list, OQ_LWC_INIT, theta);
    for (int site = 0; site < OQ_SITES; site++) OQ_TRY(initialize_site(context, t, stats, site, theta));
    return OQ_OK;
}

void oq_initialize_rtn(const oq_transformed *t, oq_real *theta)
{
    for (int64_t i = 0; i < t->list->total; i++) theta[i] = 0;
    oq_fill_clipping(t->list, OQ_LWC_IDENTITY, theta);
    for (int site = 0; site < OQ_SITES; site++)
        if (t->map[site].kind != OQ_MAP_NONE)
            oq_map_identity(&t->map[site], oq_part(t->list, t->list->map[site], theta));
}
