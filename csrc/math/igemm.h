/* Exact products of bytes: oneDNN's with VNNI, ours on AVX2. */
#ifndef OQ_MATH_IGEMM_H
#define OQ_MATH_IGEMM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* c [m, n] = a [m, k] b^T, b [n, k]; row-major, ld* the stored row lengths. No a exceeds a_most, no |b| b_most: the
 * smaller they are, the faster AVX2 adds. Sums must fit 32 bits. */
typedef struct {
    int64_t m, n, k;
    int a_most, b_most; /* at most 255 and 128 */
    const uint8_t *a;
    const int8_t *b;
    int64_t lda, ldb, ldc;
    int32_t *c;
} oq_igemm_args;

/* Whether there is one that is faster than floats. */
bool oq_has_igemm(void);
/* On the calling thread alone. */
oq_code oq_igemm_serial(const oq_igemm_args *args);

/* Ours, where the CPU has AVX2: for the table above, and for tests elsewhere. */
bool oq_igemm_avx2_runs(void);
oq_code oq_igemm_avx2(const oq_igemm_args *args);

#endif
