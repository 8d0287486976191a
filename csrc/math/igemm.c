#include "math/igemm.h"

#include "base/cpu.h"
#include "math/gemm_amx.h"
#include "math/igemm_avx512.h"
#include "math/onednn.h"

/* Floats of AVX-512 are as fast as bytes of 8 bits on AVX2. */
bool oq_has_igemm(void)
{
    return oq_igemm_amx_runs() || oq_igemm_packs() || (oq_igemm_avx2_runs() && !oq_cpu_features()->avx512f);
}

bool oq_igemm_packs(void) { return oq_igemm_avx512_runs() && !oq_igemm_amx_runs(); }

oq_code oq_igemm_serial(const oq_igemm_args *g)
{
    if (oq_igemm_amx_runs()) return oq_igemm_amx(g);
    if (oq_onednn_has_igemm())
        return oq_onednn_igemm(false, g->m, g->n, g->k, g->a, g->lda, g->b, g->ldb, g->c, g->ldc);
    return oq_igemm_avx2(g);
}
