/* Exact products of bytes: ours for VNNI, AMX and AVX2, oneDNN's to compare with. */
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
/* Whether that is the one of igemm_avx512.h, which packs B and spreads itself over threads. */
bool oq_igemm_packs(void);
/* Otherwise, on the calling thread alone; by VNNI that of oneDNN, where it is loaded. */
oq_code oq_igemm_serial(const oq_igemm_args *args);

/* Ours, where the CPU has AVX2: for the table above, and for tests elsewhere. */
bool oq_igemm_avx2_runs(void);
oq_code oq_igemm_avx2(const oq_igemm_args *args);

#endif
