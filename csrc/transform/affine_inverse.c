#include "transform/affine_inverse.h"

#include <stdio.h>
#include <string.h>

#include "math/check.h"
#include "math/inverse.h"
#include "transform/dominance.h"

#define LARGEST_CONDITION 1e12

oq_code oq_affine_with_inverse(oq_context *context, const oq_affine *affine, const oq_real *p, double *a,
                               double *inverse)
{
    const int64_t n = affine->width;
    char name[40];
    oq_affine_forward(affine, p, a);
    OQ_TRY(oq_check_finite_doubles(context, "A", a, affine->blocks * n, n));
    for (int64_t b = 0; b < affine->blocks; b++) {
        double *block = a + b * n * n, *block_inverse = inverse + b * n * n;
        const bool pivot = !(oq_weakest_row(block, n).margin > 0); /* dominance makes LU stable without */
        snprintf(name, sizeof name, "block %lld of A", (long long)b);
        OQ_TRY(oq_inverse(context, block, block_inverse, n, pivot, name));
        const double condition = oq_condition_inf(block, block_inverse, n);
        if (!(condition <= LARGEST_CONDITION))
            return oq_fail(context, OQ_SINGULAR, "%s: its condition number %.3g is beyond 1e12", name, condition);
    }
    return OQ_OK;
}

oq_code oq_affine_with_inverse_backward(oq_context *context, const oq_affine *affine, const oq_real *p,
                                        const double *da, const double *dinverse, oq_real *dp)
{
    const int64_t n = affine->width, count = affine->blocks * n * n;
    double *a, *inverse, *total;
    OQ_NEW(context, a, count);
    OQ_NEW(context, inverse, count);
    OQ_NEW_ZERO(context, total, count);
    OQ_TRY(oq_affine_with_inverse(context, affine, p, a, inverse));
    if (da) memcpy(total, da, sizeof *total * (size_t)count);
    for (int64_t b = 0; dinverse && b < affine->blocks; b++)
        OQ_TRY(oq_inverse_backward(context, inverse + b * n * n, dinverse + b * n * n, total + b * n * n, n));
    memset(dp, 0, sizeof *dp * (size_t)count);
    oq_affine_backward(affine, p, total, dp);
    return OQ_OK;
}
