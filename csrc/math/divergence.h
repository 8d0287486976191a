/* How far the next tokens one model expects are from those another does. */
#ifndef OQ_MATH_DIVERGENCE_H
#define OQ_MATH_DIVERGENCE_H

#include "base/context.h"
#include "base/real.h"

typedef struct {
    const oq_real *reference, *logits; /* [M, V] each */
    const int32_t *targets;            /* [M] in 0..V-1 */
    int64_t rows, vocabulary;
} oq_two_logits;

/* Of each row, in nats: kl = sum_v P_v log(P_v / Q_v), P the reference's probabilities; the targets' negative
 * log-likelihoods under both; and whether both have the same likeliest token. Each [M]. */
typedef struct {
    double *kl, *reference_nll, *nll;
    int32_t *same;
} oq_divergence;

/* kl of one row [n], p the reference's logits; q becomes share times its gradient by what q was before it was capped
 * (cap 0: it was not), share (Q - P) (1 - (q / cap)^2). */
double oq_row_divergence_backward(const oq_real *p, oq_real *q, int64_t n, oq_real share, double cap);
oq_code oq_diverge(oq_context *context, const oq_two_logits *of, const oq_divergence *to);

#endif
