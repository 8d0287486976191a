/* Single-precision products on AVX2: oneDNN 3.2 is at its best from AVX-512 on. */
#ifndef OQ_MATH_SGEMM_AVX2_H
#define OQ_MATH_SGEMM_AVX2_H

#include "math/gemm.h"

/* Whether this processor can take it; never in the double-precision twin. */
bool oq_sgemm_avx2_runs(void);
/* Whether it is the faster one for such a product: without AVX-512, and where C is more than a few rows. */
bool oq_sgemm_avx2_pays(const oq_gemm_args *args);
/* On the calling thread alone. The sum of an element of C depends on k alone, not on where C was cut. */
oq_code oq_sgemm_avx2(const oq_gemm_args *args);

#endif
