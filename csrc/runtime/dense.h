/* A matrix left in the precision it came in: float, half, bfloat16, or bytes or nibbles with a half-precision scale
 * every 32 inputs (what GGUF calls Q8_0 and Q4_0: byte j of a group holds inputs j, low, and j + 16, 8 added).
 * Embedding, head, online maps, and weights that stay float.  Products are for floats, halves and bfloat16; those
 * of bytes and nibbles belong to kernels/linear.h.
 *
 * The sum over the inputs runs in the same order for any number of rows and threads. */
#ifndef OQ_RUNTIME_DENSE_H
#define OQ_RUNTIME_DENSE_H

#include "base/context.h"
#include "base/real.h"

typedef enum { OQ_DENSE_FLOAT, OQ_DENSE_HALF, OQ_DENSE_BFLOAT, OQ_DENSE_BYTES, OQ_DENSE_NIBBLES } oq_dense_kind;
enum { OQ_DENSE_GROUP = 32 };

typedef struct {
    oq_dense_kind kind;
    int64_t out, in;
    const void *values;     /* [out, in] */
    const uint16_t *scales; /* bytes and nibbles: halves [out, ceil(in / 32)]; NULL of the others */
    const float *bias;      /* [out] or NULL */
} oq_dense;

/* The code of an input of a row of bytes or nibbles; whole groups of 32 in the latter. */
static inline int oq_dense_code(const oq_dense *w, int64_t row, int64_t i)
{
    const int64_t at = row * w->in + i;
    if (w->kind == OQ_DENSE_BYTES) return ((const int8_t *)w->values)[at];
    const uint8_t both = ((const uint8_t *)w->values)[(at - i % 32) / 2 + i % 16];
    return (i % 32 < 16 ? both & 15 : both >> 4) - 8;
}

#ifndef OQ_DOUBLE
struct oq_lanes_kernels;

/* y [rows, out] = x [rows, in] W^T + bias */
oq_code oq_dense_run(oq_context *context, const struct oq_lanes_kernels *kernels, const oq_dense *w,
                     const float *x, int64_t rows, float *y);
/* values [in] = row `index` of W */
void oq_dense_row(const oq_dense *w, int64_t index, float *values);
#endif

#endif
