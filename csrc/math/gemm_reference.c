#include "math/gemm.h"

#define TILE_REAL oq_real
#define TILE_GEMM reference
#include "math/gemm_tile.h"

void oq_gemm_reference(const oq_gemm_args *args)
{
    reference(&(tile_args){.transpose_a = args->transpose_a,
                           .transpose_b = args->transpose_b,
                           .m = args->m,
                           .n = args->n,
                           .k = args->k,
                           .alpha = args->alpha,
                           .beta = args->beta,
                           .a = args->a,
                           .b = args->b,
                           .lda = args->lda,
                           .ldb = args->ldb,
                           .ldc = args->ldc,
                           .c = args->c});
}
