/* Language-model head, the negative log-likelihood of the next token, and the likeliest one. */
#ifndef OQ_MATH_CROSS_ENTROPY_H
#define OQ_MATH_CROSS_ENTROPY_H

#include "base/context.h"
#include "base/real.h"

/* hidden [T, H] (already normalised), head [V, H], targets [T] in 0..V-1 -> nll [T], nats; best [T]. */
oq_code oq_cross_entropy(oq_context *context, const oq_real *hidden, const oq_real *head, const int32_t *targets,
                         double *nll, int32_t *best, int64_t tokens, int64_t width, int64_t vocabulary);
/* Of one row of logits [n]: log sum exp(logits) - logits[target]. */
double oq_row_nll(const oq_real *row, int64_t n, int32_t target);

#endif
