#include "runtime/decoder.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "base/alloc.h"
#include "base/parallel.h"
#include "base/size.h"
#include "math/cross_entropy.h"
#include "math/vector.h"
#include "runtime/step.h"

enum {
    STEP_ROWS = 512, /* tokens that go through all blocks together */
    HEAD_ROWS = 64   /* tokens whose logits exist at a time where only their likelihood is asked for */
};

/* The quantizer of keys or values: 16 bits are kept as halves unless activations are kept at 32. */
static oq_quantizer stored(const oq_runtime_model *model, oq_quantizer quantizer)
{
    if (quantizer.bits >= 16) quantizer.bits = model->quantizers.x.bits >= 32 ? 32 : 16;
    return quantizer;
}

oq_code oq_decoder_create(oq_context *context, oq_decoder *decoder)
{
    const oq_runtime_model *model = decoder->model;
    const size_t layers = (size_t)model->layers;
    const oq_runtime_entry *entry = &model->entry;
    size_t one, all, views;
    if (entry->positions && decoder->capacity > entry->position_count)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "%lld tokens: the model has %lld positions",
                       (long long)decoder->capacity, (long long)entry->position_count);
    const oq_activation_quantizers *quant = &model->quantizers;
    decoder->shape = oq_cache_shape_of(model->spec.kv_heads, model->spec.head_dim, decoder->capacity,
                                       quant->sink_tokens, stored(model, quant->k), stored(model, quant->v));
    OQ_TRY(oq_cache_bytes(context, &decoder->shape, &one));
    if (!oq_size_mul(one, layers, &all) || !oq_size_mul(layers, sizeof *decoder->layers, &views))
        return oq_fail_memory(context, layers, one);
    decoder->bytes = all;
    decoder->arena = oq_arena_create();
    decoder->layers = oq_malloc(views);
    decoder->memory = oq_zeroed(all);
    if (!decoder->arena || !decoder->layers || !decoder->memory) return oq_fail_memory(context, layers, one);
    for (size_t i = 0; i < layers; i++)
        oq_cache_place(&decoder->shape, (uint8_t *)decoder->memory + i * one, &decoder->layers[i]);
    return OQ_OK;
}

void oq_decoder_destroy(oq_decoder *decoder)
{
    oq_arena_destroy(decoder->arena);
    oq_free(decoder->layers);
    oq_free(decoder->memory);
}

/* ---- a feed ------------------------------------------------------------------ */

typedef struct {
    oq_context *context;
    oq_decoder *decoder;
    const int32_t *ids;
    int64_t tokens;
    const oq_feed_result *result;
    oq_code code;
} feed;

static oq_code check(oq_context *context, const oq_decoder *s, const int32_t *ids, int64_t tokens)
{
    const int64_t vocabulary = s->model->embedding.out;
    for (int64_t i = 0; i < s->model->layers; i++) {
        const oq_runtime_block *block = &s->model->blocks[i];
        if (!block->set) return oq_fail(context, OQ_INVALID_ARGUMENT, "block %lld is not set", (long long)i);
        if (block->spec.rope && block->rope_table >= s->rope_tables)
            return oq_fail(context, OQ_INVALID_ARGUMENT, "block %lld takes rotary table %lld of %lld", (long long)i,
                           (long long)block->rope_table, (long long)s->rope_tables);
    }
    if (tokens < 1 || tokens > s->capacity - s->length)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "%lld tokens do not fit: the decoder holds %lld of %lld",
                       (long long)tokens, (long long)s->length, (long long)s->capacity);
    for (int64_t i = 0; i < tokens; i++)
        if (ids[i] < 0 || ids[i] >= vocabulary)
            return oq_fail(context, OQ_INVALID_ARGUMENT,
                           "token %d at position %lld is outside the vocabulary of %lld", (int)ids[i],
                           (long long)i, (long long)vocabulary);
    return OQ_OK;
}

/* x [rows, H] = what the first block reads of ids at `position` onwards. */
static oq_code enter(oq_context *context, const oq_runtime_model *model, const int32_t *ids, int64_t rows,
                     int64_t position, float *x)
{
    const oq_runtime_entry *entry = &model->entry;
    const int64_t H = model->spec.hidden;
    const oq_norm_shape shape = {model->spec.norm, model->spec.norm_eps, rows, H};
    for (int64_t t = 0; t < rows; t++) oq_dense_row(&model->embedding, ids[t], x + t * H);
    if (entry->scale != 0)
        for (int64_t i = 0; i < rows * H; i++) x[i] *= (float)entry->scale;
    if (entry->gain) {
        const oq_mark mark = oq_arena_mark(context->arena);
        oq_norm_stats *stats;
        float *raw;
        OQ_NEW(context, stats, rows);
        OQ_NEW(context, raw, rows * H);
        memcpy(raw, x, sizeof *x * (size_t)(rows * H));
        oq_norm_forward(context, shape, raw, entry->gain, entry->bias, x, stats);
        oq_arena_rewind(context->arena, mark);
    }
    if (entry->positions) oq_add(x, entry->positions + position * H, rows * H);
    return OQ_OK;
}

/* logits [rows, V] of hidden states x [rows, H]. */
static oq_code head(oq_context *context, const oq_runtime_model *model, const float *x, int64_t rows,
                    float *logits)
{
    const oq_norm_shape shape = {model->spec.norm, model->spec.norm_eps, rows, model->spec.hidden};
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_norm_stats *stats;
    float *normed;
    OQ_NEW(context, stats, rows);
    OQ_NEW(context, normed, rows * shape.width);
    oq_norm_forward(context, shape, x, model->final_gain, model->final_bias, normed, stats);
    if (model->head.packed)
        OQ_TRY(oq_qlinear_run(context, &model->head.integers, normed, rows, logits));
    else
        OQ_TRY(oq_dense_run(context, model->lanes, &model->head.floats, normed, rows, logits));
    oq_cap(model->logit_cap, logits, rows * model->embedding.out);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

typedef struct {
    const float *logits;
    const int32_t *targets;
    double *nll;
    int64_t vocabulary;
} likelihood;

static void one_row(void *user, int64_t item, int worker)
{
    const likelihood *l = user;
    (void)worker;
    l->nll[item] = oq_row_nll(l->logits + item * l->vocabulary, l->vocabulary, l->targets[item]);
}

/* nll [rows] of the targets [rows] after hidden states x [rows, H]. */
static oq_code score(oq_context *context, const oq_runtime_model *model, const float *x, int64_t rows,
                     const int32_t *targets, double *nll)
{
    const int64_t V = model->embedding.out, H = model->spec.hidden;
    const oq_mark mark = oq_arena_mark(context->arena);
    float *logits;
    OQ_NEW(context, logits, (rows < HEAD_ROWS ? rows : HEAD_ROWS) * V);
    for (int64_t begin = 0; begin < rows; begin += HEAD_ROWS) {
        const int64_t count = rows - begin < HEAD_ROWS ? rows - begin : HEAD_ROWS;
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(head(context, model, x + begin * H, count, logits));
        likelihood l = {logits, targets + begin, nll + begin, V};
        oq_parallel_for(context->threads, count, one_row, &l);
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* What was asked for, of the rows begin..begin + rows - 1 whose hidden states are x. */
static oq_code answer(const feed *f, int64_t begin, int64_t rows, const float *x)
{
    const oq_runtime_model *model = f->decoder->model;
    const int64_t V = model->embedding.out, H = model->spec.hidden, end = begin + rows;
    switch (f->result->want) {
    case OQ_WANT_ALL: return head(f->context, model, x, rows, f->result->logits + begin * V);
    case OQ_WANT_NLL:
        return score(f->context, model, x, end < f->tokens ? rows : rows - 1, f->ids + begin + 1,
                     f->result->nll + begin);
    case OQ_WANT_LAST:
        return end < f->tokens ? OQ_OK : head(f->context, model, x + (rows - 1) * H, 1, f->result->logits);
    case OQ_WANT_NOTHING: break;
    }
    return OQ_OK;
}

static oq_code run_feed(const feed *f)
{
    const oq_runtime_model *model = f->decoder->model;
    const int64_t H = model->spec.hidden, most = f->tokens < STEP_ROWS ? f->tokens : STEP_ROWS;
    float *x;
    OQ_NEW(f->context, x, most * H);
    for (int64_t begin = 0; begin < f->tokens; begin += STEP_ROWS) {
        const int64_t rows = f->tokens - begin < STEP_ROWS ? f->tokens - begin : STEP_ROWS;
        OQ_TRY(enter(f->context, model, f->ids + begin, rows, f->decoder->length + begin, x));
        OQ_TRY(oq_step(f->context, f->decoder, f->decoder->length + begin, rows, x));
        OQ_TRY(answer(f, begin, rows, x));
    }
    return OQ_OK;
}

static void lead(void *user)
{
    feed *f = user;
    f->code = run_feed(f);
}

oq_code oq_decoder_feed(oq_context *context, oq_decoder *decoder, const int32_t *ids, int64_t tokens,
                        const oq_feed_result *result)
{
    OQ_TRY(check(context, decoder, ids, tokens));
    oq_arena *const before = context->arena;
    context->arena = decoder->arena;
    const oq_mark mark = oq_arena_mark(context->arena);
    feed f = {context, decoder, ids, tokens, result, OQ_OK};
    oq_parallel_team(context->threads, lead, &f);
    oq_arena_rewind(context->arena, mark);
    context->arena = before;
    if (f.code == OQ_OK) decoder->length += tokens;
    return f.code;
}

#else
typedef int oq_decoder_is_float_only;
#endif
