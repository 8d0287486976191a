/* Where a language model ends: the last norm, the head, and the negative log-likelihood of a next token. */
#ifndef OQ_BLOCK_HEAD_H
#define OQ_BLOCK_HEAD_H

#include "math/norm.h"

/* M predictions, H hidden, V vocabulary. */
typedef struct {
    oq_norm_kind norm;
    double norm_eps;
    int64_t rows, width, vocabulary;
    const oq_real *hidden;      /* [M, H] */
    const oq_real *gain, *bias; /* [H]; bias may be NULL */
    const oq_real *head;        /* [V, H] */
    const oq_real *head_bias;   /* [V] or NULL */
    double logit_cap;           /* 0: none */
    const int32_t *targets;     /* [M] */
} oq_head;

/* nll [M] of the targets, in nats, and the likeliest token best [M]. */
oq_code oq_token_nll(oq_context *context, const oq_head *head, double *nll, int32_t *best);

#endif
