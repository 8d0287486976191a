/* Language-model head, the negative log-likelihood of the next token, and the likeliest one. */
#ifndef OQ_MATH_CROSS_ENTROPY_H
#define OQ_MATH_CROSS_ENTROPY_H

#include "base/context.h"
#include "base/real.h"

/* From hidden states to logits: x W^T + bias, then cap tanh(. / cap). */
typedef struct {
    const oq_real *weight, *bias; /* [V, H], [V] or NULL */
    double cap;                   /* 0: none */
    int64_t width, vocabulary;
} oq_logits;

/* OQ_INVALID_ARGUMENT names the first that is none of 0..V-1. */
oq_code oq_check_targets(oq_context *context, const int32_t *targets, int64_t tokens, int64_t vocabulary);
/* hidden [T, H] (already normalised), targets [T] in 0..V-1 -> nll [T], nats; best [T]. */
oq_code oq_cross_entropy(oq_context *context, const oq_logits *head, const oq_real *hidden, const int32_t *targets,
                         double *nll, int32_t *best, int64_t tokens);
/* Of one row of logits [n]: log sum exp(logits); that less logits[target]; the first of the largest. */
double oq_row_log_sum(const oq_real *row, int64_t n);
double oq_row_nll(const oq_real *row, int64_t n, int32_t target);
int32_t oq_row_best(const oq_real *row, int64_t n);

#endif
