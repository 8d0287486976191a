#include "math/loss.h"

/* Mean of (a - b)^2 over a row, in double; b NULL: 0. */
OQ_VECTORIZED static double mean_square(const oq_real *a, const oq_real *b, int64_t n)
{
    enum { LANES = 8 };
    double sums[LANES] = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        const int lanes = n - i < LANES ? (int)(n - i) : LANES;
        for (int j = 0; j < lanes; j++) {
            const double e = (double)a[i + j] - (b ? (double)b[i + j] : 0);
            sums[j] += e * e;
        }
    }
    for (int j = 1; j < LANES; j++) sums[0] += sums[j];
    return sums[0] / (double)n;
}

double oq_token_energy(const oq_real *x, int64_t hidden) { return mean_square(x, NULL, hidden); }

void oq_loss_weights(oq_loss_kind kind, const oq_real *target, const oq_real *x, double *weights, int64_t tokens,
                     int64_t hidden)
{
    for (int64_t t = 0; t < tokens; t++) {
        double energy = 1;
        if (kind != OQ_LOSS_MSE)
            energy = mean_square(target + t * hidden, kind == OQ_LOSS_TOKEN ? x + t * hidden : NULL, hidden);
        weights[t] = 1 / ((double)tokens * (energy > 1e-12 ? energy : 1e-12));
    }
}

OQ_VECTORIZED static void add_error(const oq_real *y, const oq_real *target, oq_real *dy, double weight, int64_t n)
{
    const oq_real factor = (oq_real)(2 * weight / (double)n);
    for (int64_t i = 0; i < n; i++) dy[i] += factor * (y[i] - target[i]);
}

double oq_loss(const oq_real *y, const oq_real *target, const double *weights, oq_real *dy, int64_t tokens,
               int64_t hidden)
{
    double loss = 0;
    for (int64_t t = 0; t < tokens; t++) {
        loss += weights[t] * mean_square(y + t * hidden, target + t * hidden, hidden);
        if (dy) add_error(y + t * hidden, target + t * hidden, dy + t * hidden, weights[t], hidden);
    }
    return loss;
}
