#include "calibrate/search.h"

#include "math/gemm.h"
#include "quant/lwc.h"

#define SMALLEST 1e-4 /* of a scale, before its normalisation */

enum { EXPONENTS = 20 }; /* 0, 0.05 .. 0.95 of the magnitudes */

/* One site: what its linears read, and room for the largest of them. */
typedef struct {
    const oq_transformed *t;
    int site;
    int64_t width;
    oq_real *gram, *s;                 /* [width, width], [width] in the order of columns */
    oq_real *scaled, *error, *through; /* [out, width] W s, D, D G */
    oq_range *ranges;
    oq_real *logits; /* [out, groups] */
} search;

static int64_t groups_per_row(const search *s, int linear)
{
    const oq_groups groups = oq_weight_groups(s->t->spec, s->t->options, linear);
    return oq_groups_per_row(&groups);
}

/* Whether a linear reads the site's input, and rounding its weights makes an error there. */
static bool is_read(const search *s, int linear)
{
    return oq_sites_of(s->t->spec, linear).columns == s->site && oq_has_linear(s->t->spec, linear) &&
           oq_quantizes(s->t->options, linear);
}

static oq_code create(oq_context *context, search *s, const oq_grams *grams)
{
    int64_t out = 0, groups = 0;
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!is_read(s, i)) continue;
        const int64_t rows = oq_shape_of(s->t->spec, i).out;
        if (rows > out) out = rows;
        if (groups_per_row(s, i) > groups) groups = groups_per_row(s, i);
    }
    s->width = grams->width[s->site];
    OQ_NEW(context, s->gram, s->width * s->width);
    for (int64_t i = 0; i < s->width * s->width; i++) s->gram[i] = (oq_real)grams->gram[s->site][i];
    OQ_NEW(context, s->s, s->width);
    OQ_NEW(context, s->scaled, out * s->width);
    OQ_NEW(context, s->error, out * s->width);
    OQ_NEW(context, s->through, out * s->width);
    OQ_NEW(context, s->ranges, out * groups);
    OQ_NEW(context, s->logits, out * groups);
    return OQ_OK;
}

OQ_VECTORIZED static void scale_columns(const oq_real *w, const oq_real *s, oq_real *to, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++) to[r * width + c] = w[r * width + c] * s[c];
}

/* D = Q(W s) / s - W, from `error` = Q(W s) in place. */
OQ_VECTORIZED static void subtract_original(const oq_real *w, const oq_real *s, oq_real *error, int64_t rows,
                                            int64_t width)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++) error[r * width + c] = error[r * width + c] / s[c] - w[r * width + c];
}

static oq_code quantization_error(oq_context *context, search *s, int linear, oq_clip clip)
{
    const oq_groups groups = oq_weight_groups(s->t->spec, s->t->options, linear);
    const oq_real *w = s->t->original->weight[linear];
    scale_columns(w, s->s, s->scaled, groups.rows, groups.width);
    OQ_TRY(oq_fake_quantize_forward(context, &groups, clip, s->scaled, s->error, s->ranges));
    subtract_original(w, s->s, s->error, groups.rows, groups.width);
    return OQ_OK;
}

/* through = D G of some columns, on the diagonal block of G they have. */
static oq_code times_gram(oq_context *context, const search *s, int64_t rows, int64_t begin, int64_t count)
{
    return oq_gemm(context, &(oq_gemm_args){.m = rows,
                                            .n = count,
                                            .k = count,
                                            .alpha = 1,
                                            .a = s->error + begin,
                                            .lda = s->width,
                                            .b = s->gram + begin * s->width + begin,
                                            .ldb = s->width,
                                            .c = s->through + begin,
                                            .ldc = s->width});
}

static double squared(const search *s, int64_t row, int64_t begin, int64_t count)
{
    double sum = 0;
    for (int64_t c = row * s->width + begin; c < row * s->width + begin + count; c++)
        sum += (double)s->error[c] * (double)s->through[c];
    return sum;
}

/* ---- scales ------------------------------------------------------------------ */

static oq_code site_error(oq_context *context, search *s, double *error)
{
    *error = 0;
    for (int i = 0; i < OQ_LINEARS; i++) {
        if (!is_read(s, i)) continue;
        const int64_t rows = oq_shape_of(s->t->spec, i).out;
        OQ_TRY(quantization_error(context, s, i, (oq_clip){0}));
        OQ_TRY(times_gram(context, s, rows, 0, s->width));
        for (int64_t r = 0; r < rows; r++) *error += squared(s, r, 0, s->width);
    }
    return OQ_OK;
}

/* s_j = magnitude_j^exponent over the root of the largest times the smallest. */
static void scales_of(const double *magnitude, double exponent, oq_real *s, int64_t count)
{
    double lo = INFINITY, hi = 0;
    for (int64_t i = 0; i < count; i++) {
        const double value = fmax(pow(magnitude[i], exponent), SMALLEST);
        lo = fmin(lo, value);
        hi = fmax(hi, value);
    }
    for (int64_t i = 0; i < count; i++)
        s[i] = (oq_real)(fmax(pow(magnitude[i], exponent), SMALLEST) / sqrt(lo * hi));
}

/* Heads that share a block of the map read the same scales. */
static void spread(search *s, const oq_real *scales)
{
    const int64_t n = s->t->map[s->site].affine.width, blocks = s->t->map[s->site].affine.blocks;
    const int64_t repeat = s->width / (blocks * n);
    for (int64_t c = 0; c < s->width; c++) s->s[c] = scales ? scales[c / n / repeat * n + c % n] : 1;
}

static oq_code search_scales(oq_context *context, search *s, const double *magnitude, oq_real *theta)
{
    const oq_map *map = &s->t->map[s->site];
    const int64_t count = map->affine.blocks * map->affine.width;
    oq_real *scales, *best;
    double least = INFINITY;
    OQ_NEW(context, scales, count);
    OQ_NEW(context, best, count);
    for (int k = 0; k < EXPONENTS; k++) {
        double error;
        OQ_TRY(oq_check_cancel(context));
        scales_of(magnitude, (double)k / EXPONENTS, scales, count);
        spread(s, scales);
        OQ_TRY(site_error(context, s, &error));
        if (!(error < least)) continue;
        least = error;
        for (int64_t i = 0; i < count; i++) best[i] = scales[i];
    }
    oq_map_from_diagonal(map, best, oq_part(s->t->list, s->t->list->map[s->site], theta));
    oq_map_floor(map, oq_part(s->t->list, s->t->list->map[s->site], theta));
    spread(s, best);
    return OQ_OK;
}

/* ---- clipping ---------------------------------------------------------------- */

/* Unclipped is where training can still begin, or the very range where there is none. */
static oq_real logit_of(const oq_transformed *t, double share)
{
    if (share < 1) return oq_lwc_logit(share);
    return (oq_real)(t->options->epochs > 0 ? OQ_LWC_INIT : OQ_LWC_IDENTITY);
}

static oq_code search_clip(oq_context *context, search *s, int linear, oq_real *theta)
{
    const oq_groups groups = oq_weight_groups(s->t->spec, s->t->options, linear);
    const int64_t per_row = oq_groups_per_row(&groups), count = groups.rows * per_row;
    oq_real *hi = oq_part(s->t->list, s->t->list->lwc_max[linear], theta);
    oq_real *lo = oq_part(s->t->list, s->t->list->lwc_min[linear], theta);
    double *least;
    OQ_NEW(context, least, count);
    for (int64_t i = 0; i < count; i++) least[i] = INFINITY;
    for (int k = 0; k < OQ_LWC_SHARES; k++) {
        const oq_real logit = logit_of(s->t, oq_lwc_share(k));
        OQ_TRY(oq_check_cancel(context));
        for (int64_t i = 0; i < count; i++) s->logits[i] = logit;
        OQ_TRY(quantization_error(context, s, linear, (oq_clip){.max_logit = s->logits, .min_logit = s->logits}));
        for (int64_t g = 0; g < per_row; g++) {
            const int64_t begin = g * groups.group, left = groups.width - begin;
            const int64_t size = left < groups.group ? left : groups.group;
            OQ_TRY(times_gram(context, s, groups.rows, begin, size));
            for (int64_t r = 0; r < groups.rows; r++) {
                const double error = squared(s, r, begin, size);
                if (!(error < least[r * per_row + g])) continue;
                least[r * per_row + g] = error;
                hi[r * per_row + g] = lo[r * per_row + g] = logit;
            }
        }
    }
    return OQ_OK;
}

static oq_code search_site(oq_context *context, search *s, const oq_channel_stats *stats, const oq_grams *grams,
                           oq_real *theta)
{
    OQ_TRY(create(context, s, grams));
    spread(s, NULL);
    if (s->t->map[s->site].kind != OQ_MAP_NONE)
        OQ_TRY(search_scales(context, s, stats->magnitude[s->site], theta));
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_mark mark = oq_arena_mark(context->arena);
        if (!is_read(s, i) || s->t->list->lwc_max[i] < 0 || i == OQ_Q || i == OQ_K) continue;
        OQ_TRY(search_clip(context, s, i, theta));
        oq_arena_rewind(context->arena, mark);
    }
    return OQ_OK;
}

oq_code oq_search_start(oq_context *context, const oq_transformed *t, const oq_channel_stats *stats,
                        const oq_grams *grams, oq_real *theta)
{
    oq_fill_clipping(t->list, (double)logit_of(t, 1), theta);
    for (int site = 0; site < OQ_SITES; site++) {
        search s = {.t = t, .site = site};
        const oq_mark mark = oq_arena_mark(context->arena);
        if (!grams->gram[site]) continue;
        OQ_TRY(search_site(context, &s, stats, grams, theta));
        oq_arena_rewind(context->arena, mark);
    }
    return OQ_OK;
}
