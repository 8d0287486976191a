/* The inner loops of the runtime, one set an instruction set. */
#ifndef OQ_RUNTIME_LANES_KERNELS_H
#define OQ_RUNTIME_LANES_KERNELS_H

#include "runtime/cache.h"
#include "runtime/dense.h"

enum { OQ_DENSE_COLUMNS = 4 }; /* outputs that are computed together */

typedef struct oq_lanes_kernels {
    const char *name;
    /* y[row * w->out + n] for the outputs n = begin..end - 1; scratch [OQ_DENSE_COLUMNS, in rounded up to 16]. */
    void (*dense)(const oq_dense *w, int64_t begin, int64_t end, const float *x, int64_t rows, float *y,
                  float *scratch);
    /* panel [dims, 16] = a block of keys; scales and zeros [16]. */
    void (*keys)(const oq_cache_format *format, const uint8_t *block, const float *scales, const uint8_t *zeros,
                 float *panel);
    /* panel [tokens, dims] = values of consecutive tokens. */
    void (*values)(const oq_cache_format *format, const uint8_t *from, const float *scales, const uint8_t *zeros,
                   int64_t tokens, float *panel);
    /* s[row * stride + 0..15] = alpha q[row, d] . panel [d, 16] */
    void (*scores)(const float *q, int64_t rows, int64_t d, const float *panel, float alpha, float *s,
                   int64_t stride);
    /* out [rows, dims] += p[row * stride + token] panel [tokens, dims] */
    void (*weigh)(const float *p, int64_t stride, int64_t rows, const float *panel, int64_t tokens, int64_t dims,
                  float *out);
} oq_lanes_kernels;

#ifndef OQ_DOUBLE
extern const oq_lanes_kernels oq_lanes_plain;
/* What this processor can run: "avx512", "avx2", "plain" or, for NULL, the best; NULL where it cannot. */
const oq_lanes_kernels *oq_lanes_find(const char *name);
#endif

#endif
