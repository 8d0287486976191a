/* Causal attention of new tokens over a cache, grouped key/value heads.  A row's sums run over the dimensions and
 * over the tokens in their order, whatever came with it: a token's result is the same bits in a prefill of any
 * length and in decoding, at any number of threads. */
#ifndef OQ_RUNTIME_ATTEND_H
#define OQ_RUNTIME_ATTEND_H

#include "math/scores.h"
#include "runtime/cache.h"

#ifndef OQ_DOUBLE
struct oq_lanes_kernels;

/* q, out [tokens, heads d]; token i stands at position + i and sees the cache up to there. */
oq_code oq_attend(oq_context *context, const struct oq_lanes_kernels *kernels, const oq_cache_shape *shape,
                  const oq_cache *cache, const oq_score_rule *rule, int64_t heads, int64_t position,
                  const float *q, int64_t tokens, float *out);
#endif

#endif
