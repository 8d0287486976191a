/* Rotary position embedding, rotate-half convention: the pair (x_i, x_{i + r/2}) of a head's first r dims turns by
 * the angle of frequency i at the token's position; the other dims stay. */
#ifndef OQ_MATH_ROPE_H
#define OQ_MATH_ROPE_H

#include "base/context.h"
#include "base/real.h"

typedef struct {
    const oq_real *cos, *sin; /* [>= tokens, dims / 2] */
    int64_t dims;             /* r */
} oq_rope;

/* x [tokens, heads * head_dim], in place. The backward is the rotation back. */
void oq_rope_forward(const oq_context *context, oq_rope rope, oq_real *x, int64_t tokens, int64_t heads,
                     int64_t head_dim);
void oq_rope_backward(const oq_context *context, oq_rope rope, oq_real *dx, int64_t tokens, int64_t heads,
                      int64_t head_dim);

#endif
