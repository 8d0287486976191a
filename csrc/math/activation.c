#include "math/activation.h"

#include "base/parallel.h"
#include "math/elementary.h"

#define CHUNK 8192
#define STRIP 256
#define SQRT_2_OVER_PI 0.7978845608028654
#define GELU_CUBIC 0.044715

typedef struct {
    oq_activation kind;
    const oq_real *gate, *up, *dout;
    oq_real *out, *dgate, *dup;
    int64_t count;
} job;

OQ_INLINE oq_real gelu_inner(oq_real x) { return (oq_real)SQRT_2_OVER_PI * (x + (oq_real)GELU_CUBIC * x * x * x); }

OQ_INLINE oq_real value(oq_activation kind, oq_real x)
{
    switch (kind) {
    case OQ_SILU: return x * oq_logistic(x);
    case OQ_GELU: return (oq_real)(0.5 * (double)x * (1 + erf((double)x * 0.7071067811865476)));
    case OQ_GELU_TANH: return (oq_real)0.5 * x * (1 + oq_tanh(gelu_inner(x)));
    case OQ_RELU: break;
    }
    return x > 0 ? x : (x != x ? x : 0);
}

typedef struct {
    oq_real value, slope;
} point;

/* Both, which share their exponential. */
OQ_INLINE point point_at(oq_activation kind, oq_real x)
{
    switch (kind) {
    case OQ_SILU: {
        const oq_real s = oq_logistic(x);
        return (point){x * s, s * (1 + x * (1 - s))};
    }
    case OQ_GELU: {
        const double z = (double)x, below = 0.5 * (1 + erf(z * 0.7071067811865476));
        return (point){(oq_real)(z * below), (oq_real)(below + z * 0.3989422804014327 * exp(-0.5 * z * z))};
    }
    case OQ_GELU_TANH: {
        const oq_real t = oq_tanh(gelu_inner(x));
        const oq_real inner = (oq_real)SQRT_2_OVER_PI * (1 + 3 * (oq_real)GELU_CUBIC * x * x);
        return (point){(oq_real)0.5 * x * (1 + t),
                       (oq_real)0.5 * (1 + t) + (oq_real)0.5 * x * (1 - t * t) * inner};
    }
    case OQ_RELU: break;
    }
    return (point){value(kind, x), x > 0};
}

/* kind is a constant in each call below, so the switch leaves the loop. */
OQ_INLINE void forward_kind(const job *j, oq_activation kind, int64_t begin, int64_t end)
{
    if (j->up)
        for (int64_t i = begin; i < end; i++) j->out[i] = value(kind, j->gate[i]) * j->up[i];
    else
        for (int64_t i = begin; i < end; i++) j->out[i] = value(kind, j->gate[i]);
}

/* Strips go through arrays of their own: dgate may be dout, which would keep the loop from being vectorised. */
OQ_INLINE void backward_kind(const job *j, oq_activation kind, int64_t begin, int64_t end)
{
    oq_real dvalue[STRIP], values[STRIP];
    for (int64_t i = begin; i < end; i += STRIP) {
        const int64_t n = end - i < STRIP ? end - i : STRIP;
        const oq_real *d = j->dout + i, *x = j->gate + i;
        for (int64_t k = 0; k < n; k++) {
            const point p = point_at(kind, x[k]);
            dvalue[k] = d[k] * p.slope;
            values[k] = d[k] * p.value;
        }
        if (j->up) {
            for (int64_t k = 0; k < n; k++) dvalue[k] *= j->up[i + k];
            memcpy(j->dup + i, values, sizeof *values * (size_t)n);
        }
        memcpy(j->dgate + i, dvalue, sizeof *dvalue * (size_t)n);
    }
}

OQ_VECTORIZED static void forward_range(const job *j, int64_t begin, int64_t end)
{
    switch (j->kind) {
    case OQ_SILU: forward_kind(j, OQ_SILU, begin, end); break;
    case OQ_GELU: forward_kind(j, OQ_GELU, begin, end); break;
    case OQ_GELU_TANH: forward_kind(j, OQ_GELU_TANH, begin, end); break;
    case OQ_RELU: forward_kind(j, OQ_RELU, begin, end); break;
    }
}

OQ_VECTORIZED static void backward_range(const job *j, int64_t begin, int64_t end)
{
    switch (j->kind) {
    case OQ_SILU: backward_kind(j, OQ_SILU, begin, end); break;
    case OQ_GELU: backward_kind(j, OQ_GELU, begin, end); break;
    case OQ_GELU_TANH: backward_kind(j, OQ_GELU_TANH, begin, end); break;
    case OQ_RELU: backward_kind(j, OQ_RELU, begin, end); break;
    }
}

static void forward_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * CHUNK, end = begin + CHUNK;
    (void)worker;
    forward_range(j, begin, end < j->count ? end : j->count);
}

static void backward_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * CHUNK, end = begin + CHUNK;
    (void)worker;
    backward_range(j, begin, end < j->count ? end : j->count);
}

void oq_activation_forward(const oq_context *context, oq_activation kind, const oq_real *gate, const oq_real *up,
                           oq_real *out, int64_t count)
{
    const job j = {.kind = kind, .gate = gate, .up = up, .out = out, .count = count};
    oq_parallel_for(context->threads, (count + CHUNK - 1) / CHUNK, forward_chunk, (void *)&j);
}

void oq_activation_backward(const oq_context *context, oq_activation kind, const oq_real *gate, const oq_real *up,
                            const oq_real *dout, oq_real *dgate, oq_real *dup, int64_t count)
{
    const job j = {.kind = kind, .gate = gate, .up = up, .dout = dout, .dgate = dgate, .dup = dup, .count = count};
    oq_parallel_for(context->threads, (count + CHUNK - 1) / CHUNK, backward_chunk, (void *)&j);
}
