#include "math/check.h"

#include "math/vector.h"

#ifdef OQ_DOUBLE
#define LARGEST (DBL_MAX / 2)
#else
#define LARGEST (FLT_MAX / 2)
#endif

oq_code oq_check_finite(oq_context *context, const char *name, const oq_real *x, int64_t rows, int64_t width)
{
    const int64_t at = oq_find_not_finite(x, rows * width);
    if (at < 0) return OQ_OK;
    return oq_fail(context, OQ_NOT_FINITE, "%s row %lld column %lld: %g is not finite", name,
                   (long long)(at / width), (long long)(at % width), (double)x[at]);
}

oq_code oq_check_finite_doubles(oq_context *context, const char *name, const double *x, int64_t rows,
                                int64_t width)
{
    for (int64_t i = 0; i < rows * width; i++)
        if (!isfinite(x[i]))
            return oq_fail(context, OQ_NOT_FINITE, "%s row %lld column %lld: %g is not finite", name,
                           (long long)(i / width), (long long)(i % width), x[i]);
    return OQ_OK;
}

OQ_VECTORIZED static oq_real largest_magnitude(const oq_real *x, int64_t count)
{
    enum { LANES = 16 };
    oq_real most[LANES] = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        const int lanes = count - i < LANES ? (int)(count - i) : LANES;
        for (int j = 0; j < lanes; j++) most[j] = oq_max(oq_fabs(x[i + j]), most[j]);
    }
    for (int j = 1; j < LANES; j++) most[0] = oq_max(most[0], most[j]);
    return most[0];
}

oq_code oq_check_quantizable(oq_context *context, const char *name, const oq_real *x, int64_t rows, int64_t width)
{
    int64_t at = 0;
    OQ_TRY(oq_check_finite(context, name, x, rows, width));
    if (largest_magnitude(x, rows * width) <= LARGEST) return OQ_OK;
    while (oq_fabs(x[at]) <= LARGEST) at++;
    return oq_fail(context, OQ_NOT_FINITE, "%s row %lld column %lld: %g is too large to quantize", name,
                   (long long)(at / width), (long long)(at % width), (double)x[at]);
}
