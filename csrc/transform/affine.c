#include "transform/affine.h"

void oq_affine_forward(const oq_affine *affine, const oq_real *p, double *a)
{
    const int64_t n = affine->width;
    for (int64_t r = 0; r < affine->blocks * n; r++) {
        const oq_real *row = p + r * n;
        const int64_t i = r % n;
        const double diagonal = (double)row[i], factor = affine->parametrization == OQ_RELATIVE ? diagonal : 1;
        for (int64_t j = 0; j < n; j++)
            a[r * n + j] = j == i ? diagonal : factor * oq_mask_value(affine->mask, i, j) * (double)row[j];
    }
}

void oq_affine_backward(const oq_affine *affine, const oq_real *p, const double *da, oq_real *dp)
{
    const int64_t n = affine->width;
    const bool relative = affine->parametrization == OQ_RELATIVE;
    for (int64_t r = 0; r < affine->blocks * n; r++) {
        const int64_t i = r % n;
        const double factor = relative ? (double)p[r * n + i] : 1;
        double through_diagonal = da[r * n + i];
        for (int64_t j = 0; j < n; j++) {
            if (j == i) continue;
            const double masked = oq_mask_value(affine->mask, i, j) * da[r * n + j];
            dp[r * n + j] += (oq_real)(factor * masked);
            if (relative) through_diagonal += masked * (double)p[r * n + j];
        }
        dp[r * n + i] += (oq_real)through_diagonal;
    }
}

/* Sum of |A_ij| off the diagonal over |A_ii|. */
static double off_diagonal_share(const oq_affine *affine, const oq_real *row, int64_t i)
{
    double sum = 0;
    for (int64_t j = 0; j < affine->width; j++)
        if (j != i) sum += fabs(oq_mask_value(affine->mask, i, j) * (double)row[j]);
    return affine->parametrization == OQ_RELATIVE ? sum : sum / fabs((double)row[i]);
}

int64_t oq_affine_project(const oq_affine *affine, oq_real *p, double tau)
{
    const int64_t n = affine->width;
    int64_t changed = 0;
    for (int64_t r = 0; r < affine->blocks * n; r++) {
        oq_real *row = p + r * n;
        const int64_t i = r % n;
        const double share = off_diagonal_share(affine, row, i);
        if (!(share > 1 - tau)) continue;
        for (int64_t j = 0; j < n; j++)
            if (j != i) row[j] = (oq_real)((double)row[j] * ((1 - tau) / share));
        changed++;
    }
    return changed;
}

void oq_affine_floor_diagonal(const oq_affine *affine, oq_real *p, double floor_value)
{
    const int64_t n = affine->width;
    for (int64_t r = 0; r < affine->blocks * n; r++) {
        oq_real *diagonal = &p[r * n + r % n];
        if (fabs((double)*diagonal) < floor_value) *diagonal = (oq_real)copysign(floor_value, (double)*diagonal);
    }
}
