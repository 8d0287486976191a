/* Keys and values of the tokens seen so far, one layer: floats, halves, bytes or nibbles, quantized per token and
 * head by the calibrated quantizers, so that what is read back is the very number calibration saw.
 *
 *   keys    [head][16 tokens][dims][token of the 16]   nibbles: dims i (low) and i + dims / 2 (high) share a byte
 *   values  [head][token][dims]                        nibbles: the same; dims padded to whole registers
 *   scales  [head][token] and zero points alike, for keys and for values
 *   sinks   [head][first tokens][head_dim] beside codes: what the calibration kept in float                       */
#ifndef OQ_RUNTIME_CACHE_H
#define OQ_RUNTIME_CACHE_H

#include "base/context.h"
#include "quant/quantizer.h"

typedef enum { OQ_STORE_FLOAT, OQ_STORE_HALF, OQ_STORE_BYTES, OQ_STORE_NIBBLES } oq_store;

enum { OQ_KEY_BLOCK = 16 };

/* How one of the two is stored. */
typedef struct {
    oq_store store;
    oq_quantizer quantizer; /* OQ_STORE_BYTES and OQ_STORE_NIBBLES */
    int64_t dims;           /* head_dim, rounded up to what the store wants */
    int64_t block_bytes;    /* keys: of 16 tokens of a head; values: of one token of a head */
} oq_cache_format;

typedef struct {
    int64_t heads, head_dim, capacity; /* capacity: tokens, a multiple of 16 */
    int64_t sinks;                     /* tokens */
    oq_cache_format key, value;
} oq_cache_shape;

/* Keys or values. */
typedef struct {
    uint8_t *data;
    float *scales; /* [heads, capacity]; NULL unless quantized, as the following are */
    uint8_t *zeros;
    float *sinks; /* [heads, sinks, head_dim] */
} oq_cache_half;

typedef struct {
    oq_cache_half key, value;
} oq_cache;

#ifndef OQ_DOUBLE
/* 2..8 bits: quantized, but for the first `sinks` tokens; 16: halves; 32: floats. */
oq_cache_shape oq_cache_shape_of(int64_t heads, int64_t head_dim, int64_t tokens, int64_t sinks, oq_quantizer key,
                                 oq_quantizer value);
/* Bytes of one layer, a multiple of 64; OQ_OUT_OF_MEMORY where they overflow. */
oq_code oq_cache_bytes(oq_context *context, const oq_cache_shape *shape, size_t *bytes);
/* A view of memory [oq_cache_bytes], all zeros: what attention reads beyond the last token must be finite. */
void oq_cache_place(const oq_cache_shape *shape, void *memory, oq_cache *cache);
/* Store k and v [tokens, heads d] as tokens `position` onwards. */
oq_code oq_cache_append(oq_context *context, const oq_cache_shape *shape, const oq_cache *cache, int64_t position,
                        const float *k, const float *v, int64_t tokens);
#endif

#endif
