/* One text being read and continued: the cache of its tokens, and the step that adds new ones. */
#ifndef OQ_RUNTIME_DECODER_H
#define OQ_RUNTIME_DECODER_H

#include "runtime/cache.h"
#include "runtime/model.h"

#ifndef OQ_DOUBLE

typedef struct {
    const oq_runtime_model *model;
    oq_rope rope;             /* borrowed, [tables, capacity, dims / 2] */
    int64_t rope_tables;
    int64_t capacity, length; /* tokens that fit, tokens that are in */
    size_t bytes;
    oq_cache_shape shape;
    oq_cache *layers;
    void *memory;
    oq_arena *arena; /* scratch, kept from step to step */
} oq_decoder;

/* What a feed is asked for. */
typedef enum {
    OQ_WANT_NOTHING, /* fill the cache */
    OQ_WANT_LAST,    /* logits [1, V] of the last token */
    OQ_WANT_ALL,     /* logits [tokens, V] */
    OQ_WANT_NLL      /* nll [tokens - 1], nats of each next token */
} oq_want;

typedef struct {
    oq_want want;
    float *logits;
    double *nll;
} oq_feed_result;

/* model, rope, rope_tables and capacity are set by the caller; capacity is at most the learned positions'. */
oq_code oq_decoder_create(oq_context *context, oq_decoder *decoder);
void oq_decoder_destroy(oq_decoder *decoder);

/* Run ids [tokens] behind what the decoder holds. On an error the decoder is as it was. */
oq_code oq_decoder_feed(oq_context *context, oq_decoder *decoder, const int32_t *ids, int64_t tokens,
                        const oq_feed_result *result);

#endif

#endif
