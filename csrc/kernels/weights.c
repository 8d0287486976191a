/* Packing a layer's weights into the layout of layout.h. */
#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "base/size.h"
#include "kernels/kernel.h"
#include "kernels/layout.h"
#include "quant/pack.h"

static const int64_t MOST_SIDE = (int64_t)1 << 30; /* products of two sizes, and bytes, stay far from 2^63 */

typedef struct {
    size_t codes, scales, sums, zeros, bias, total; /* offsets */
} offsets;

static oq_code check_spec(oq_context *context, const oq_qlinear_spec *s)
{
    if (s->bits < 2 || s->bits > 8)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "bits must be 2..8, got %d", s->bits);
    if (s->activation.bits < 2 || (s->activation.bits > 8 && oq_is_quantized(s->activation)))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "activation bits must be 2..8, or 16 for float, got %d",
                       s->activation.bits);
    if (s->out < 1 || s->in < 1 || s->out > MOST_SIDE || s->in > MOST_SIDE)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "a linear of %lld outputs and %lld inputs cannot be packed",
                       (long long)s->out, (long long)s->in);
    if (s->group < 1 || s->group > s->in)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "group size %lld does not fit %lld inputs",
                       (long long)s->group, (long long)s->in);
    return OQ_OK;
}

/* *at becomes where count * size bytes start, *total grows by them in whole cache lines. */
static bool place(size_t *at, size_t *total, int64_t count, size_t size)
{
    size_t bytes;
    *at = *total;
    return oq_size_mul((size_t)count, size, &bytes) && oq_size_align(bytes, 64, &bytes) &&
           oq_size_add(*total, bytes, total);
}

static bool place_all(const oq_qlinear_spec *s, const oq_layout *l, offsets *o)
{
    const int64_t tiles = oq_pieces(s->out, OQ_TILE), width = tiles * OQ_TILE;
    const int64_t summed = oq_is_quantized(s->activation) ? width : OQ_PANEL;
    *o = (offsets){0};
    return place(&o->codes, &o->total, tiles * l->units, (size_t)l->unit_bytes) &&
           place(&o->scales, &o->total, width * l->groups, sizeof(float)) &&
           place(&o->sums, &o->total, summed * l->segments, sizeof(int16_t)) &&
           place(&o->zeros, &o->total, s->symmetric ? 0 : width * l->groups, 1) &&
           place(&o->bias, &o->total, s->bias ? width : 0, sizeof(float));
}

static oq_code measure(oq_context *context, const oq_qlinear_spec *spec, oq_layout *layout, offsets *o)
{
    OQ_TRY(check_spec(context, spec));
    *layout = oq_layout_of(spec->in, spec->group, spec->bits, oq_planes_of(spec->activation));
    if (place_all(spec, layout, o)) return OQ_OK;
    return oq_fail(context, OQ_INVALID_ARGUMENT, "a linear of %lld x %lld at group size %lld is too large",
                   (long long)spec->out, (long long)spec->in, (long long)spec->group);
}

oq_code oq_qlinear_bytes(oq_context *context, const oq_qlinear_spec *spec, size_t *bytes)
{
    oq_layout layout;
    offsets o;
    OQ_TRY(measure(context, spec, &layout, &o));
    *bytes = o.total;
    return OQ_OK;
}

/* ---- one tile ------------------------------------------------------------- */

/* quad [16, 4]: inputs 4j .. 4j + 3 of the unit. Each byte of a unit takes a quad's byte, shifted. */
static void put_quad(uint8_t *unit, const uint8_t quad[64], int64_t j, int bits)
{
    if (bits == 3) {
        uint8_t *low = unit + j / 4 * 64, *high = unit + 128;
        for (int i = 0; i < 64; i++) {
            low[i] = (uint8_t)(low[i] | (quad[i] & 3) << (j % 4 * 2));
            high[i] = (uint8_t)(high[i] | quad[i] >> 2 << j);
        }
        return;
    }
    for (int i = 0; i < 64; i++) unit[i] = (uint8_t)(unit[i] | quad[i] << (j * bits));
}

/* codes [16, in] from input `begin`; sums[lane] of the `length` codes of this segment, if wanted. */
static void put_segment(const oq_layout *l, const uint8_t *codes, int64_t begin, int64_t length, uint8_t *to,
                        int64_t stride, int16_t *sums)
{
    int total[OQ_TILE] = {0};
    for (int64_t u = 0; u < oq_segment_units(l, length); u++, to += stride) {
        memset(to, 0, (size_t)l->unit_bytes);
        for (int64_t j = 0; j < l->unit / 4; j++) {
            uint8_t quad[64] = {0};
            const int64_t from = u * l->unit + 4 * j, some = oq_least(4, length - from);
            for (int lane = 0; lane < OQ_TILE; lane++)
                for (int64_t b = 0; b < some; b++) {
                    quad[4 * lane + b] = codes[lane * l->in + begin + from + b];
                    total[lane] += quad[4 * lane + b];
                }
            put_quad(to, quad, j, l->stored_bits);
        }
    }
    for (int lane = 0; sums && lane < OQ_TILE; lane++) sums[lane] = (int16_t)total[lane];
}

typedef struct {
    oq_context *context;
    const oq_qlinear_spec *spec;
    const oq_qlinear_source *source;
    const oq_layout *layout;
    uint8_t *codes, *zeros;
    float *scales;
    int16_t *sums; /* NULL: floats have no zero point that they would correct */
    uint8_t *rows; /* [threads, 16, in] */
} packing;

/* What a tile's place in its panel says: outputs of the panel and the first of the tile. */
typedef struct {
    int64_t panel, width, lane, first, outputs;
} tile_place;

static tile_place place_of(int64_t tile, int64_t out)
{
    const int64_t panel = tile / OQ_PANEL_TILES, tiles = oq_pieces(out, OQ_TILE);
    const int64_t beside = oq_least(OQ_PANEL_TILES, tiles - panel * OQ_PANEL_TILES);
    return (tile_place){panel, beside * OQ_TILE, tile % OQ_PANEL_TILES * OQ_TILE, tile * OQ_TILE,
                        oq_least(OQ_TILE, out - tile * OQ_TILE)};
}

static void load_rows(const packing *p, tile_place t, uint8_t *rows)
{
    const oq_qlinear_spec *s = p->spec;
    const int64_t bytes = p->source->dense ? oq_packed_width(s->in, s->bits) : s->in;
    const uint8_t *from = p->source->codes + t.first * bytes;
    if (p->source->dense)
        (void)oq_unpack(p->context, from, t.outputs, s->in, s->bits, rows); /* sizes are checked: cannot fail */
    else
        memcpy(rows, from, (size_t)(t.outputs * s->in));
    memset(rows + t.outputs * s->in, 0, (size_t)((OQ_TILE - t.outputs) * s->in));
}

static void put_codes(const packing *p, tile_place t, const uint8_t *rows)
{
    const oq_layout *l = p->layout;
    const int64_t stride = t.width / OQ_TILE * l->unit_bytes;
    uint8_t *to =
        p->codes + t.panel * OQ_PANEL_TILES * l->units * l->unit_bytes + t.lane / OQ_TILE * l->unit_bytes;
    int16_t *sums = p->sums ? p->sums + t.panel * OQ_PANEL * l->segments + t.lane : NULL;
    for (int64_t g = 0; g < l->groups; g++)
        for (int64_t done = 0, length; done < oq_group_length(l, g); done += length) {
            length = oq_least(OQ_SEGMENT, oq_group_length(l, g) - done);
            put_segment(l, rows, g * l->group + done, length, to, stride, sums);
            to += oq_segment_units(l, length) * stride;
            if (sums) sums += t.width;
        }
}

static void put_scales(const packing *p, tile_place t)
{
    const int64_t groups = p->layout->groups, base = t.panel * OQ_PANEL * groups + t.lane;
    for (int64_t g = 0; g < groups; g++)
        for (int lane = 0; lane < OQ_TILE; lane++) {
            const int64_t to = base + g * t.width + lane, from = (t.first + lane) * groups + g;
            p->scales[to] = lane < t.outputs ? p->source->scales[from] : 0;
            if (p->zeros) p->zeros[to] = lane < t.outputs ? p->source->zero_points[from] : 0;
        }
}

static void pack_tile(void *user, int64_t tile, int worker)
{
    const packing *p = user;
    const tile_place t = place_of(tile, p->spec->out);
    uint8_t *rows = p->rows + worker * OQ_TILE * p->spec->in;
    load_rows(p, t, rows);
    put_codes(p, t, rows);
    put_scales(p, t);
}

/* ---- the layer ------------------------------------------------------------ */

static oq_code check_groups(oq_context *context, const oq_qlinear_spec *s, const oq_layout *l,
                            const oq_qlinear_source *source)
{
    for (int64_t i = 0; i < s->out * l->groups; i++) {
        const long long row = (long long)(i / l->groups), group = (long long)(i % l->groups);
        if (!isfinite(source->scales[i]))
            return oq_fail(context, OQ_NOT_FINITE, "scale of row %lld group %lld: %g is not finite", row, group,
                           (double)source->scales[i]);
        if (source->zero_points && source->zero_points[i] >> s->bits)
            return oq_fail(context, OQ_INVALID_ARGUMENT,
                           "zero point %d of row %lld group %lld does not fit in %d bits", source->zero_points[i],
                           row, group, s->bits);
    }
    for (int64_t i = 0; s->bias && i < s->out; i++)
        if (!isfinite(source->bias[i]))
            return oq_fail(context, OQ_NOT_FINITE, "bias of row %lld: %g is not finite", (long long)i,
                           (double)source->bias[i]);
    return OQ_OK;
}

static oq_code check_codes(oq_context *context, const oq_qlinear_spec *s, const uint8_t *codes)
{
    for (int64_t row = 0; row < s->out; row++) {
        unsigned all = 0;
        for (int64_t i = 0; i < s->in; i++) all |= codes[row * s->in + i];
        if (!(all >> s->bits)) continue;
        int64_t i = 0;
        while (!(codes[row * s->in + i] >> s->bits)) i++;
        return oq_fail(context, OQ_INVALID_ARGUMENT, "code %d at row %lld column %lld does not fit in %d bits",
                       codes[row * s->in + i], (long long)row, (long long)i, s->bits);
    }
    return OQ_OK;
}

static oq_code check_source(oq_context *context, const oq_qlinear_spec *s, const oq_layout *l,
                            const oq_qlinear_source *source)
{
    if (s->symmetric != !source->zero_points || s->bias != (source->bias != NULL))
        return oq_fail(context, OQ_INVALID_ARGUMENT, "zero points or bias are not what the spec says");
    OQ_TRY(check_groups(context, s, l, source));
    return source->dense ? OQ_OK : check_codes(context, s, source->codes);
}

oq_code oq_qlinear_pack(oq_context *context, const oq_qlinear_spec *spec, const oq_qlinear_source *source,
                        void *memory, oq_qlinear *linear)
{
    offsets o;
    const oq_mark mark = oq_arena_mark(context->arena);
    *linear = (oq_qlinear){.spec = *spec};
    OQ_TRY(measure(context, spec, &linear->layout, &o));
    OQ_TRY(check_source(context, spec, &linear->layout, source));
    OQ_TRY(oq_qlinear_use(context, linear, NULL));
    uint8_t *base = memory;
    int16_t *sums = (int16_t *)(base + o.sums);
    const bool summed = oq_is_quantized(spec->activation);
    const int64_t tiles = oq_pieces(spec->out, OQ_TILE);
    packing p = {.context = context,
                 .spec = spec,
                 .source = source,
                 .layout = &linear->layout,
                 .codes = base + o.codes,
                 .zeros = spec->symmetric ? NULL : base + o.zeros,
                 .scales = (float *)(base + o.scales),
                 .sums = summed ? sums : NULL};
    if (!summed) memset(sums, 0, (size_t)(OQ_PANEL * linear->layout.segments) * sizeof *sums);
    OQ_NEW(context, p.rows, oq_least(context->threads, tiles) * OQ_TILE * spec->in);
    oq_parallel_for(context->threads, tiles, pack_tile, &p);
    oq_arena_rewind(context->arena, mark);
    linear->codes = p.codes;
    linear->scales = p.scales;
    linear->sums = sums;
    linear->zeros = p.zeros;
    if (spec->bias) linear->bias = memcpy(base + o.bias, source->bias, (size_t)spec->out * sizeof(float));
    return OQ_OK;
}
