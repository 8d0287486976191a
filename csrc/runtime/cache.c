#include "runtime/cache.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "base/size.h"
#include "quant/fake_quantize.h"
#include "runtime/half.h"

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static oq_store store_of(oq_quantizer quantizer)
{
    if (quantizer.bits >= 32) return OQ_STORE_FLOAT;
    if (quantizer.bits >= 16) return OQ_STORE_HALF;
    return quantizer.bits > 4 ? OQ_STORE_BYTES : OQ_STORE_NIBBLES;
}

static int64_t bytes_of(oq_store store, int64_t count)
{
    switch (store) {
    case OQ_STORE_FLOAT: return 4 * count;
    case OQ_STORE_HALF: return 2 * count;
    case OQ_STORE_BYTES: return count;
    case OQ_STORE_NIBBLES: break;
    }
    return count / 2;
}

static bool is_quantized(const oq_cache_format *format) { return format->store >= OQ_STORE_BYTES; }

oq_cache_shape oq_cache_shape_of(int64_t heads, int64_t head_dim, int64_t tokens, int64_t sinks, oq_quantizer key,
                                 oq_quantizer value)
{
    oq_cache_shape s = {.heads = heads,
                        .head_dim = head_dim,
                        .capacity = round_up(tokens, OQ_KEY_BLOCK),
                        .sinks = oq_least(sinks, tokens)};
    s.key = (oq_cache_format){.store = store_of(key), .quantizer = key};
    s.key.dims = s.key.store == OQ_STORE_NIBBLES ? round_up(head_dim, 2) : head_dim;
    s.key.block_bytes = bytes_of(s.key.store, s.key.dims * OQ_KEY_BLOCK);
    s.value = (oq_cache_format){.store = store_of(value), .quantizer = value};
    s.value.dims = round_up(head_dim, s.value.store == OQ_STORE_NIBBLES ? 32 : 16);
    s.value.block_bytes = bytes_of(s.value.store, s.value.dims);
    return s;
}

/* Bytes of keys, values, and of one array of scales, of zero points and of sinks; false on overflow. */
typedef struct {
    size_t keys, values, scales, zeros, sinks;
} parts;

static bool part_sizes(const oq_cache_shape *s, parts *p)
{
    size_t blocks, tokens, scales, sinks;
    if (!oq_size_mul((size_t)s->heads, (size_t)s->capacity / OQ_KEY_BLOCK, &blocks) ||
        !oq_size_mul((size_t)s->heads, (size_t)s->capacity, &tokens) ||
        !oq_size_mul(blocks, (size_t)s->key.block_bytes, &p->keys) ||
        !oq_size_mul(tokens, (size_t)s->value.block_bytes, &p->values) ||
        !oq_size_mul(tokens, sizeof(float), &scales) ||
        !oq_size_mul((size_t)s->heads * (size_t)s->sinks, (size_t)s->head_dim * sizeof(float), &sinks))
        return false;
    return oq_size_align(p->keys, 64, &p->keys) && oq_size_align(p->values, 64, &p->values) &&
           oq_size_align(scales, 64, &p->scales) && oq_size_align(tokens, 64, &p->zeros) &&
           oq_size_align(sinks, 64, &p->sinks);
}

oq_code oq_cache_bytes(oq_context *context, const oq_cache_shape *shape, size_t *bytes)
{
    parts p;
    const size_t pairs = (size_t)is_quantized(&shape->key) + is_quantized(&shape->value);
    bool fits = part_sizes(shape, &p) && oq_size_add(p.keys, p.values, bytes);
    for (size_t i = 0; fits && i < pairs; i++)
        fits = oq_size_add(*bytes, p.scales, bytes) && oq_size_add(*bytes, p.zeros, bytes) &&
               oq_size_add(*bytes, p.sinks, bytes);
    if (fits) return OQ_OK;
    return oq_fail(context, OQ_OUT_OF_MEMORY, "out of memory: a cache of %lld tokens", (long long)shape->capacity);
}

/* Places the half at `at`; returns where it ends. */
static uint8_t *place_half(const oq_cache_format *format, const parts *p, size_t data, uint8_t *at, oq_cache_half *half)
{
    *half = (oq_cache_half){.data = at};
    at += data;
    if (!is_quantized(format)) return at;
    half->scales = (float *)(void *)at;
    half->zeros = at += p->scales;
    half->sinks = (float *)(void *)(at += p->zeros);
    return at + p->sinks;
}

void oq_cache_place(const oq_cache_shape *shape, void *memory, oq_cache *cache)
{
    parts p = {0};
    (void)part_sizes(shape, &p); /* was checked by oq_cache_bytes */
    uint8_t *behind = place_half(&shape->key, &p, p.keys, memory, &cache->key);
    (void)place_half(&shape->value, &p, p.values, behind, &cache->value);
}

/* ---- storing --------------------------------------------------------------- */

/* One token of one head, as it is stored: `stride` values from one dimension to the next. */
static void put(const oq_cache_format *format, uint8_t *to, int64_t stride, const float *x, const uint8_t *codes,
                int64_t d)
{
    const int64_t half = format->dims / 2;
    for (int64_t i = 0; i < d; i++) {
        switch (format->store) {
        case OQ_STORE_FLOAT: ((float *)(void *)to)[i * stride] = x[i]; break;
        case OQ_STORE_HALF: ((uint16_t *)(void *)to)[i * stride] = oq_half_of_float(x[i]); break;
        case OQ_STORE_BYTES: to[i * stride] = codes[i]; break;
        case OQ_STORE_NIBBLES:
            if (i < half)
                to[i * stride] = (uint8_t)((to[i * stride] & 0xf0) | codes[i]);
            else
                to[(i - half) * stride] = (uint8_t)((to[(i - half) * stride] & 0x0f) | codes[i] << 4);
            break;
        }
    }
}

/* x [rows, d] on the grids of its rows; nothing where the format keeps floats. */
typedef struct {
    uint8_t *codes;
    float *scales;
    uint8_t *zeros;
} coded;

static oq_code encode(oq_context *context, const oq_cache_format *format, const float *x, int64_t rows, int64_t d,
                      coded *c)
{
    *c = (coded){0};
    if (!is_quantized(format)) return OQ_OK;
    const oq_groups groups = {rows, d, d, format->quantizer};
    OQ_NEW(context, c->codes, rows * d);
    OQ_NEW(context, c->scales, rows);
    OQ_NEW(context, c->zeros, rows);
    return oq_quantize(context, &groups, (oq_clip){0}, x, c->codes, c->scales, c->zeros);
}

static void store(const oq_cache_shape *s, const oq_cache_half *h, bool keys, int64_t position, const float *x,
                  const coded *c, int64_t tokens)
{
    const oq_cache_format *format = keys ? &s->key : &s->value;
    const int64_t d = s->head_dim, unit = bytes_of(format->store, 2) / 2; /* nibbles: 0 */
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t m = 0; m < s->heads; m++) {
            const int64_t row = t * s->heads + m, at = m * s->capacity + position + t;
            const int64_t lane = at % OQ_KEY_BLOCK * (unit ? unit : 1);
            uint8_t *to =
                h->data + (keys ? at / OQ_KEY_BLOCK * format->block_bytes + lane : at * format->block_bytes);
            put(format, to, keys ? OQ_KEY_BLOCK : 1, x + row * d, OQ_AT(c->codes, row * d), d);
            if (!c->codes) continue;
            h->scales[at] = c->scales[row];
            h->zeros[at] = c->zeros[row];
            if (position + t < s->sinks)
                memcpy(h->sinks + (m * s->sinks + position + t) * d, x + row * d, sizeof *x * (size_t)d);
        }
}

oq_code oq_cache_append(oq_context *context, const oq_cache_shape *shape, const oq_cache *cache, int64_t position,
                        const float *k, const float *v, int64_t tokens)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    coded c;
    OQ_TRY(encode(context, &shape->key, k, tokens * shape->heads, shape->head_dim, &c));
    store(shape, &cache->key, true, position, k, &c, tokens);
    OQ_TRY(encode(context, &shape->value, v, tokens * shape->heads, shape->head_dim, &c));
    store(shape, &cache->value, false, position, v, &c, tokens);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

#else
typedef int oq_cache_is_float_only;
#endif
