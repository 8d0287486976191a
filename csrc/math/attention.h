/* Causal attention with grouped key/value heads.  Query rows go tile by tile and
 * probabilities are made again in the backward pass, so memory is T, not T^2.  A window masks, it saves nothing. */
#ifndef OQ_MATH_ATTENTION_H
#define OQ_MATH_ATTENTION_H

#include "base/context.h"
#include "base/real.h"
#include "math/scores.h"

/* T = tokens, n = heads, m = kv_heads, d = head_dim; head h reads key/value head h / (n / m). */
typedef struct {
    int64_t tokens, heads, kv_heads, head_dim;
    int64_t first; /* forward alone: tokens before this one are keys without queries; q, out, log_sum begin with it */
    oq_score_rule rule;
    bool bf16; /* products take their operands rounded to bfloat16; everything else stays float */
} oq_attention_shape;

/* q [T - first, n d], k, v [T, m d] -> out [T - first, n d]; log_sum [n, T - first] = log of each row's softmax
 * denominator. */
oq_code oq_attention_forward(oq_context *context, oq_attention_shape shape, const oq_real *q, const oq_real *k,
                             const oq_real *v, oq_real *out, oq_real *log_sum);
/* dq [T, n d], dk, dv [T, m d] are overwritten. */
oq_code oq_attention_backward(oq_context *context, oq_attention_shape shape, const oq_real *q, const oq_real *k,
                              const oq_real *v, const oq_real *out, const oq_real *log_sum, const oq_real *dout,
                              oq_real *dq, oq_real *dk, oq_real *dv);

#endif
