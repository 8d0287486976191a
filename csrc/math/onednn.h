/* oneDNN, loaded at run time. */
#ifndef OQ_MATH_ONEDNN_H
#define OQ_MATH_ONEDNN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Load libdnnl from path. Call once, before the first product, from one
 * thread. On failure *error says why and the reference products stay. */
oq_code oq_onednn_load(const char *path, oq_error *error);
bool oq_onednn_loaded(void);
/* "3.2.0", or "" when not loaded. */
const char *oq_onednn_version(void);

/* Row-major single-precision product on the calling thread alone. */
oq_code oq_onednn_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                        int64_t ldc);

/* c [m, n] = a [m, k] b^T, b [n, k]: exact, a signed or unsigned bytes, on the calling thread alone. Only where
 * the CPU adds products of bytes without saturation in between: oq_onednn_has_igemm. */
bool oq_onednn_has_igemm(void);
oq_code oq_onednn_igemm(bool signed_a, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                        const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc);

/* Single-precision result of bfloat16 operands (the upper halves of floats), on the calling thread alone.
 * Only where the CPU multiplies bfloat16 faster than float: oq_onednn_has_bf16. */
bool oq_onednn_has_bf16(void);
oq_code oq_onednn_bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                            int64_t lda, const uint16_t *b, int64_t ldb, float *c, int64_t ldc);

#endif
