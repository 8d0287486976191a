/* Where a language model ends: the last norm, the head, and the negative log-likelihood of each next token. */
#ifndef OQ_BLOCK_HEAD_H
#define OQ_BLOCK_HEAD_H

#include "math/norm.h"

/* N windows of T tokens, H hidden, V vocabulary. */
typedef struct {
    oq_norm_kind norm;
    double norm_eps;
    int64_t samples, tokens, width, vocabulary;
    const oq_real *hidden;      /* [N, T, H] */
    const oq_real *gain, *bias; /* [H]; bias may be NULL */
    const oq_real *head;        /* [V, H] */
    const int32_t *ids;         /* [N, T] */
} oq_head;

/* nll [N, T - 1] in nats: token t predicts token t + 1. */
oq_code oq_next_token_nll(oq_context *context, const oq_head *head, double *nll);

#endif
