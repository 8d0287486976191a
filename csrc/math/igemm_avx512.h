/* Products of bytes with AVX-512 VNNI, whose sums are handed on while they are in the nearest cache. */
#ifndef OQ_MATH_IGEMM_AVX512_H
#define OQ_MATH_IGEMM_AVX512_H

#include <stdbool.h>
#include <stdint.h>

#include "base/context.h"
#include "math/right.h"

/* Some rows of 64 columns of C, or of what is left of them. */
typedef struct {
    int64_t row, rows, column, columns;
    const int32_t *sums;   /* [rows, 64] */
    const int32_t *b_sums; /* [64] sums over k of B's columns */
} oq_sums;
typedef void (*oq_take_sums)(const void *user, const oq_sums *sums);

/* C [m, n] = A [m, k] B, bytes without and with a sign. */
typedef struct {
    int64_t m;
    const uint8_t *a; /* [m, k] */
    const oq_right *b;
    oq_take_sums take; /* of any thread, in any order */
    const void *user;
} oq_igemm_avx512_args;

bool oq_igemm_avx512_runs(void);
oq_code oq_igemm_avx512(oq_context *context, const oq_igemm_avx512_args *args);

#endif
