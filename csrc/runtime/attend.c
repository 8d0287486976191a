#include "runtime/attend.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "base/parallel.h"
#include "base/size.h"
#include "math/elementary.h"
#include "runtime/lanes_kernels.h"

#define LANES 16
enum { TILE = 64, CHUNK = 64 }; /* rows of an item, tokens whose values are read at a time */

/* An item is one key/value head and some consecutive tokens: its rows are their query heads of that group. */
typedef struct {
    const oq_lanes_kernels *kernels;
    const oq_cache_shape *shape;
    const oq_cache *cache;
    const oq_score_rule *rule;
    int64_t heads, group, position, tokens;
    int64_t tile_tokens, tiles, most_rows, most_keys;
    const float *q;
    float *out;
    float *scratch; /* [workers, scratch_count] */
    int64_t scratch_count;
} job;

typedef struct {
    int64_t head, first, rows, keys; /* keys: of the last row, rounded up to whole blocks */
    float *q, *p, *out, *panel, *sums;
} tile;

static tile make_tile(const job *j, int64_t item, int worker)
{
    const oq_cache_shape *s = j->shape;
    tile t = {.head = item / j->tiles, .first = item % j->tiles * j->tile_tokens};
    const int64_t left = j->tokens - t.first, tokens = left < j->tile_tokens ? left : j->tile_tokens;
    t.rows = tokens * j->group;
    t.keys = (j->position + t.first + tokens + OQ_KEY_BLOCK - 1) / OQ_KEY_BLOCK * OQ_KEY_BLOCK;
    t.q = j->scratch + worker * j->scratch_count;
    t.p = t.q + j->most_rows * s->head_dim;
    t.out = t.p + j->most_rows * j->most_keys;
    t.sums = t.out + j->most_rows * s->value.dims;
    t.panel = t.sums + j->most_rows;
    return t;
}

/* Where row r's query, or its result, lies in [tokens, heads d]. */
static int64_t place(const job *j, const tile *t, int64_t r)
{
    const int64_t token = t->first + r / j->group, head = t->head * j->group + r % j->group;
    return (token * j->heads + head) * j->shape->head_dim;
}

/* Keys of a block, panel [d, 16] from token `key` on, and values, panel [tokens, dims]: sinks as they came. */
static void put_key_sinks(const job *j, const tile *t, int64_t key)
{
    const oq_cache_shape *s = j->shape;
    const float *sinks = j->cache->key.sinks + t->head * s->sinks * s->head_dim;
    for (int64_t l = 0; l < OQ_KEY_BLOCK && key + l < s->sinks; l++)
        for (int64_t i = 0; i < s->head_dim; i++)
            t->panel[i * OQ_KEY_BLOCK + l] = sinks[(key + l) * s->head_dim + i];
}

static void put_value_sinks(const job *j, const tile *t, int64_t key, int64_t tokens)
{
    const oq_cache_shape *s = j->shape;
    const float *sinks = j->cache->value.sinks + t->head * s->sinks * s->head_dim;
    for (int64_t l = 0; l < tokens && key + l < s->sinks; l++)
        memcpy(t->panel + l * s->value.dims, sinks + (key + l) * s->head_dim, sizeof *sinks * (size_t)s->head_dim);
}

static void find_scores(const job *j, const tile *t)
{
    const oq_cache_shape *s = j->shape;
    const float alpha = (float)oq_score_scale(j->rule, s->head_dim);
    for (int64_t r = 0; r < t->rows; r++)
        memcpy(t->q + r * s->head_dim, j->q + place(j, t, r), (size_t)s->head_dim * sizeof *t->q);
    for (int64_t key = 0; key < t->keys; key += OQ_KEY_BLOCK) {
        const int64_t at = t->head * s->capacity + key;
        const float *scales = OQ_AT(j->cache->key.scales, at);
        const uint8_t *zeros = OQ_AT(j->cache->key.zeros, at);
        j->kernels->keys(&s->key, j->cache->key.data + at / OQ_KEY_BLOCK * s->key.block_bytes, scales, zeros,
                         t->panel);
        if (j->cache->key.sinks) put_key_sinks(j, t, key);
        j->kernels->scores(t->q, t->rows, s->head_dim, t->panel, alpha, t->p + key, t->keys);
    }
}

/* Products of row r, whose token stands at `position`, become scores; those it does not see fall out. */
OQ_VECTORIZED static void shape_row(const job *j, const tile *t, int64_t r, int64_t position)
{
    const int64_t head = t->head * j->group + r % j->group, first = oq_first_key(j->rule, position);
    const float alibi = (float)oq_alibi_slope(j->rule, head, j->heads);
    float *p = t->p + r * t->keys, slope;
    for (int64_t c = 0; c < first; c++) p[c] = -FLT_MAX;
    if (!oq_has_shaped_scores(j->rule)) return;
    for (int64_t c = first; c <= position; c++) p[c] = oq_shaped_score(j->rule, alibi, position - c, p[c], &slope);
}

/* p <- exp(p - max) of what row r may see, 0 beyond; returns the sum. Token i is always in lane i mod 16. */
OQ_VECTORIZED static float softmax_row(float *p, int64_t visible, int64_t keys)
{
    float tops[LANES], sums[LANES] = {0}, top = p[0], sum = 0;
    int64_t c = 0;
    for (int l = 0; l < LANES; l++) tops[l] = p[0];
    for (; c + LANES <= visible; c += LANES)
        for (int l = 0; l < LANES; l++) tops[l] = tops[l] < p[c + l] ? p[c + l] : tops[l];
    for (; c < visible; c++) top = top < p[c] ? p[c] : top;
    for (int l = 0; l < LANES; l++) top = top < tops[l] ? tops[l] : top;
    for (c = 0; c + LANES <= visible; c += LANES)
        for (int l = 0; l < LANES; l++) sums[l] += p[c + l] = oq_exp(p[c + l] - top);
    for (int l = 0; c + l < visible; l++) sums[l] += p[c + l] = oq_exp(p[c + l] - top);
    for (c = visible; c < keys; c++) p[c] = 0;
    for (int l = 0; l < LANES; l++) sum += sums[l];
    return sum;
}

static void add_values(const job *j, const tile *t)
{
    const oq_cache_shape *s = j->shape;
    memset(t->out, 0, (size_t)(t->rows * s->value.dims) * sizeof *t->out);
    for (int64_t key = 0; key < t->keys; key += CHUNK) {
        const int64_t at = t->head * s->capacity + key, left = t->keys - key;
        const int64_t tokens = left < CHUNK ? left : CHUNK;
        const float *scales = OQ_AT(j->cache->value.scales, at);
        const uint8_t *zeros = OQ_AT(j->cache->value.zeros, at);
        j->kernels->values(&s->value, j->cache->value.data + at * s->value.block_bytes, scales, zeros, tokens,
                           t->panel);
        if (j->cache->value.sinks) put_value_sinks(j, t, key, tokens);
        j->kernels->weigh(t->p + key, t->keys, t->rows, t->panel, tokens, s->value.dims, t->out);
    }
}

static void attend_item(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t d = j->shape->head_dim;
    const tile t = make_tile(j, item, worker);
    find_scores(j, &t);
    for (int64_t r = 0; r < t.rows; r++) {
        const int64_t position = j->position + t.first + r / j->group;
        shape_row(j, &t, r, position);
        t.sums[r] = softmax_row(t.p + r * t.keys, position + 1, t.keys);
    }
    add_values(j, &t);
    for (int64_t r = 0; r < t.rows; r++) {
        const float *from = t.out + r * j->shape->value.dims;
        float *to = j->out + place(j, &t, r);
        for (int64_t i = 0; i < d; i++) to[i] = from[i] / t.sums[r];
    }
}

oq_code oq_attend(oq_context *context, const oq_lanes_kernels *kernels, const oq_cache_shape *shape,
                  const oq_cache *cache, const oq_score_rule *rule, int64_t heads, int64_t position,
                  const float *q, int64_t tokens, float *out)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.kernels = kernels,
             .shape = shape,
             .cache = cache,
             .rule = rule,
             .heads = heads,
             .group = heads / shape->heads,
             .position = position,
             .tokens = tokens,
             .q = q,
             .out = out};
    const int64_t dims = shape->value.dims > shape->key.dims ? shape->value.dims : shape->key.dims;
    j.tile_tokens = j.group < TILE ? TILE / j.group : 1;
    j.tiles = (tokens + j.tile_tokens - 1) / j.tile_tokens;
    j.most_rows = (tokens < j.tile_tokens ? tokens : j.tile_tokens) * j.group;
    j.most_keys = (position + tokens + OQ_KEY_BLOCK - 1) / OQ_KEY_BLOCK * OQ_KEY_BLOCK;
    j.scratch_count = j.most_rows * (shape->head_dim + j.most_keys + shape->value.dims + 1) + CHUNK * dims;
    OQ_NEW(context, j.scratch, context->threads * j.scratch_count);
    oq_parallel_for(context->threads, shape->heads * j.tiles, attend_item, &j);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

#else
typedef int oq_attend_is_float_only;
#endif
