/* Where a language model ends: the last norm, the head, the negative log-likelihood of a next token, and how far its
 * predictions are from another model's. */
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
    bool bf16;                  /* operands of products are rounded to it; of the divergence alone */
    const int32_t *targets;     /* [M]; of the likelihood alone */
} oq_head;

/* nll [M] of the targets, in nats, and the likeliest token best [M]. */
oq_code oq_token_nll(oq_context *context, const oq_head *head, double *nll, int32_t *best);
/* kl [M] = sum_v P_v log(P_v / Q_v), nats, P the reference's next tokens and Q the head's; dhidden [M, H] = the
 * gradient of their mean by head->hidden.  Both have as many rows, and one vocabulary. */
oq_code oq_head_divergence(oq_context *context, const oq_head *head, const oq_head *reference, double *kl,
                           oq_real *dhidden);

#endif
