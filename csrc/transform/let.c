#include "transform/let.h"

oq_real oq_let_init(double activation_max, double weight_max, double alpha)
{
    const double x = fmax(activation_max, OQ_LET_INIT_FLOOR), w = fmax(weight_max, OQ_LET_INIT_FLOOR);
    return (oq_real)fmax(pow(x, alpha) / pow(w, 1 - alpha), OQ_LET_INIT_FLOOR);
}

void oq_let_floor(oq_real *s, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (fabs((double)s[i]) < OQ_LET_FLOOR) s[i] = (oq_real)copysign(OQ_LET_FLOOR, (double)s[i]);
}

OQ_VECTORIZED void oq_scale_columns(oq_real *w, const oq_real *s, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) w[r * width + i] *= s[i];
}

OQ_VECTORIZED void oq_scale_columns_backward(const oq_real *w, const oq_real *dy, double *ds, int64_t rows,
                                             int64_t width)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) ds[i] += (double)(dy[r * width + i] * w[r * width + i]);
}

OQ_VECTORIZED double oq_scale_row_backward(const oq_real *w, const oq_real *dy, int64_t width)
{
    enum { LANES = 8 };
    double sums[LANES] = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        const int lanes = width - i < LANES ? (int)(width - i) : LANES;
        for (int j = 0; j < lanes; j++) sums[j] += (double)dy[i + j] * (double)w[i + j];
    }
    for (int j = 1; j < LANES; j++) sums[0] += sums[j];
    return sums[0];
}
