/* Products on AMX, straight from matrices as they lie: oneDNN 3.2 packs and configures more than small ones bear. */
#ifndef OQ_MATH_GEMM_AMX_H
#define OQ_MATH_GEMM_AMX_H

#include "math/bf16.h"
#include "math/gemm.h"
#include "math/igemm.h"

bool oq_bf16_amx_runs(void);
bool oq_igemm_amx_runs(void);

/* On the calling thread alone; OQ_OUT_OF_MEMORY where packed operands find no room. The sum of an element of C depends
 * on k alone, not on where C was cut. */
oq_code oq_bf16_amx(const oq_bf16_gemm_args *args);
oq_code oq_igemm_amx(const oq_igemm_args *args);

/* Products of floats as three of bfloat16: no further from exact than 2^-16 of the sum of |a b|, at three times float's
 * rate. Where alpha and beta are as it has them, and C is no sliver. */
bool oq_sgemm_amx_can(const oq_gemm_args *args);
oq_code oq_sgemm_amx(const oq_gemm_args *args);

#endif
