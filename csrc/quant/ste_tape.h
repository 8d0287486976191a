/* Test-only (double build): the frozen surrogate behind the straight-through
 * gradient.  A first pass records, for every value that passes a quantizer,
 *   keep = 1 inside the range and 0 where clipped,  offset = (q - z) - keep u,
 * a replay computes x^ = (keep u + offset) h: a function whose true derivative
 * is the straight-through one, so that it can be differenced. */
#ifndef OQ_QUANT_STE_TAPE_H
#define OQ_QUANT_STE_TAPE_H

#ifdef OQ_DOUBLE
#include "base/context.h"
#include "base/real.h"

typedef enum { OQ_TAPE_OFF, OQ_TAPE_RECORD, OQ_TAPE_REPLAY } oq_tape_mode;

/* Rewind and set the mode; RECORD forgets what was recorded. */
void oq_tape_start(oq_tape_mode mode);
oq_tape_mode oq_tape_state(void);
/* The next count values of the tape: keep and offset, interleaved [count, 2]; NULL: out of memory or,
 * in a replay, more values than were recorded. */
double *oq_tape_next(int64_t count);
#endif

#endif
