#include "transform/dominance.h"

double oq_row_margin(const double *row, int64_t i, int64_t n)
{
    double others = 0;
    for (int64_t j = 0; j < n; j++) others += j == i ? 0 : fabs(row[j]);
    return fabs(row[i]) - others;
}

oq_dominance oq_weakest_row(const double *a, int64_t n)
{
    oq_dominance weakest = {.margin = INFINITY, .diagonal = 0, .row = -1};
    for (int64_t i = 0; i < n; i++) {
        const double margin = oq_row_margin(a + i * n, i, n);
        /* The negation makes a NaN the weakest row of all. */
        if (weakest.row < 0 || !(margin >= weakest.margin))
            weakest = (oq_dominance){.margin = margin, .diagonal = fabs(a[i * n + i]), .row = i};
        if (margin != margin) break;
    }
    return weakest;
}

double oq_varah_bound(double margin) { return margin > 0 ? 1 / margin : INFINITY; }

int64_t oq_project_dominant(double *a, int64_t n, double tau)
{
    int64_t changed = 0;
    for (int64_t i = 0; i < n; i++) {
        double *row = a + i * n;
        const double diagonal = fabs(row[i]), others = diagonal - oq_row_margin(row, i, n);
        const double allowed = (1 - tau) * diagonal;
        if (!(others > allowed)) continue;
        for (int64_t j = 0; j < n; j++)
            if (j != i) row[j] *= allowed / others;
        changed++;
    }
    return changed;
}
