/* The MLP's nonlinearity: act(gate) * up for gated MLPs, act(up) for plain ones. */
#ifndef OQ_MATH_ACTIVATION_H
#define OQ_MATH_ACTIVATION_H

#include "base/context.h"
#include "base/real.h"

typedef enum { OQ_SILU, OQ_GELU, OQ_GELU_TANH, OQ_RELU } oq_activation;

/* out [count] = act(gate) * up; up NULL: out = act(gate). */
void oq_activation_forward(const oq_context *context, oq_activation kind, const oq_real *gate, const oq_real *up,
                           oq_real *out, int64_t count);
/* dgate, dup [count] from dout; up and dup are NULL together. dgate may be dout. */
void oq_activation_backward(const oq_context *context, oq_activation kind, const oq_real *gate, const oq_real *up,
                            const oq_real *dout, oq_real *dgate, oq_real *dup, int64_t count);

#endif
