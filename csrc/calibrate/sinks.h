/* Sink tokens: what their residual stream holds is massive (Sun et al., 2402.17762), they draw attention, and their
 * squared error is most of a plain loss. */
#ifndef OQ_CALIBRATE_SINKS_H
#define OQ_CALIBRATE_SINKS_H

#include "base/context.h"
#include "base/real.h"

/* Mean squares this many times the median of their window's. */
enum { OQ_MASSIVE = 100 };

/* sink [T]: which tokens of x [T, H] are some; *count is how many. */
oq_code oq_find_sinks(oq_context *context, const oq_real *x, int64_t T, int64_t H, bool *sink, int64_t *count);

#endif
