/* Products of bfloat16 on AVX-512. */
#ifndef OQ_MATH_BF16_AVX512_H
#define OQ_MATH_BF16_AVX512_H

#include "math/bf16.h"

bool oq_bf16_avx512_runs(void);
/* On the calling thread alone; OQ_OUT_OF_MEMORY where packed operands find no room. The sum of an element of C depends
 * on k alone, not on where C was cut. */
oq_code oq_bf16_avx512(const oq_bf16_gemm_args *args);

#endif
