/* A matrix left in the precision it came in: float, half, bfloat16, or bytes with a half-precision scale every
 * 32 inputs (what GGUF calls Q8_0).  Embedding, head, online maps, and weights that stay float.  Products are
 * for floats, halves and bfloat16; those of bytes belong to kernels/linear.h.
 *
 * The sum over the inputs runs in the same order for any number of rows and threads. */
#ifndef OQ_RUNTIME_DENSE_H
#define OQ_RUNTIME_DENSE_H

#include "base/context.h"
#include "base/real.h"

typedef enum { OQ_DENSE_FLOAT, OQ_DENSE_HALF, OQ_DENSE_BFLOAT, OQ_DENSE_BYTES } oq_dense_kind;
enum { OQ_DENSE_GROUP = 32 };

typedef struct {
    oq_dense_kind kind;
    int64_t out, in;
    const void *values;     /* [out, in] */
    const uint16_t *scales; /* OQ_DENSE_BYTES: halves [out, ceil(in / 32)] */
    const float *bias;      /* [out] or NULL */
} oq_dense;

#ifndef OQ_DOUBLE
struct oq_lanes_kernels;

/* y [rows, out] = x [rows, in] W^T + bias */
oq_code oq_dense_run(oq_context *context, const struct oq_lanes_kernels *kernels, const oq_dense *w,
                     const float *x, int64_t rows, float *y);
/* values [in] = row `index` of W */
void oq_dense_row(const oq_dense *w, int64_t index, float *values);
#endif

#endif
