/* Dense products: oneDNN when it was loaded, else the plain reference twin. */
#ifndef OQ_MATH_GEMM_H
#define OQ_MATH_GEMM_H

#include "base/context.h"
#include "base/real.h"

/* C [m, n] = alpha * op(A) [m, k] * op(B) [k, n] + beta * C, all row-major;
 * op(X) is X or its transpose, ld* the stored row length of the stored matrix.
 * beta = 0 never reads C. */
typedef struct {
    bool transpose_a, transpose_b;
    bool in_parts; /* on one thread: as the context says for oq_gemm */
    int64_t m, n, k;
    oq_real alpha, beta;
    const oq_real *a, *b;
    int64_t lda, ldb, ldc;
    oq_real *c;
} oq_gemm_args;

/* On the calling thread alone: for use inside oq_parallel_for bodies. */
oq_code oq_gemm_serial(const oq_gemm_args *args);
/* Rows (or columns) of C are cut into panels that depend on the shape alone and
 * spread over context->threads. */
oq_code oq_gemm(oq_context *context, const oq_gemm_args *args);

/* The plain twin, always there: what the tests compare with. */
void oq_gemm_reference(const oq_gemm_args *args);

/* The three products of a linear y = x W^T, W [out, in], contiguous rows.
 *   forward          y  [rows, out]  = x  [rows, in] W^T
 *   backward_input   dx [rows, in]  (+)= dy [rows, out] W
 *   backward_weight  dw [out, in]   (+)= dy^T x                            */
oq_code oq_linear_forward(oq_context *context, const oq_real *x, const oq_real *w, oq_real *y, int64_t rows,
                          int64_t in, int64_t out);
oq_code oq_linear_backward_input(oq_context *context, const oq_real *dy, const oq_real *w, oq_real *dx,
                                 int64_t rows, int64_t in, int64_t out, bool accumulate);
oq_code oq_linear_backward_weight(oq_context *context, const oq_real *dy, const oq_real *x, oq_real *dw,
                                  int64_t rows, int64_t in, int64_t out, bool accumulate);

#endif
