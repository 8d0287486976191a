/* All blocks on some new tokens. */
#ifndef OQ_RUNTIME_STEP_H
#define OQ_RUNTIME_STEP_H

#include "runtime/decoder.h"

#ifndef OQ_DOUBLE
/* x [tokens, H]: embeddings in, the last block's output out; the cache gets tokens at `position` onwards. */
oq_code oq_step(oq_context *context, const oq_decoder *decoder, int64_t position, int64_t tokens, float *x);
#endif

#endif
