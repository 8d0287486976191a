/* bfloat16: the upper half of a float, 8 bits of precision, kept as uint16_t. */
#ifndef OQ_MATH_BF16_H
#define OQ_MATH_BF16_H

#include <string.h>

#include "base/context.h"
#include "base/real.h"
#include "math/gemm_panels.h"

/* To nearest, ties to even. A NaN as processors make it stays one. */
static inline uint16_t oq_bf16_of(oq_real x)
{
    const float value = (float)x;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float oq_float_of_bf16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* to [count] = x [count] rounded: on the calling thread, and on all. */
void oq_bf16_round(const oq_real *restrict x, uint16_t *restrict to, int64_t count);
void oq_bf16_from_real(const oq_context *context, const oq_real *x, uint16_t *to, int64_t count);

/* C [m, n] (+)= op(A) [m, k] op(B) [k, n], A and B rows of bfloat16, sums in float; see oq_gemm_args for op and
 * ld.  Only where oq_has_bf16. */
typedef struct {
    bool transpose_a, transpose_b, accumulate;
    int64_t m, n, k;
    const uint16_t *a, *b;
    int64_t lda, ldb, ldc;
    oq_real *c;
} oq_bf16_gemm_args;
oq_code oq_bf16_gemm(oq_context *context, const oq_bf16_gemm_args *args);
/* The same on the calling thread. */
oq_code oq_bf16_gemm_serial(const oq_bf16_gemm_args *args);
/* What makes a panel of C. */
oq_bf16_gemm_args oq_bf16_part(const oq_bf16_gemm_args *whole, oq_panel panel);

/* Whether there is one that is faster than floats. */
bool oq_has_bf16(void);

#endif
