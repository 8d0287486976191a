#include "calibrate/shift.h"

/* Shift of the input column c: heads of one group share their key/value head's. */
static int64_t shift_index(const oq_transformed *t, int site, int linear, int64_t c)
{
    const int64_t n = t->map[site].affine.width;
    return c / n / oq_repeat_of(t->spec, site, linear) * n + c % n;
}

void oq_shift_bias_forward(const oq_transformed *t, const oq_real *theta, int linear, oq_real *bias)
{
    const int site = oq_sites_of(t->spec, linear).columns;
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    const oq_real *in = oq_part_const(t->list, t->list->shift[site], theta);
    const oq_real *out = linear == OQ_V ? oq_part_const(t->list, t->list->shift[OQ_SITE_VO], theta) : NULL;
    for (int64_t r = 0; r < shape.out; r++) {
        double sum = (double)t->original->bias[linear][r] - (out ? (double)out[r] : 0);
        const oq_real *w = oq_unrotated_weight(t, linear) + r * shape.in;
        for (int64_t c = 0; in && c < shape.in; c++)
            sum += (double)w[c] * (double)in[shift_index(t, site, linear, c)];
        bias[r] = (oq_real)sum;
    }
}

void oq_shift_bias_backward(const oq_transformed *t, oq_real *dtheta, int linear, const oq_real *dbias)
{
    const int site = oq_sites_of(t->spec, linear).columns;
    const oq_linear_shape shape = oq_shape_of(t->spec, linear);
    oq_real *din = oq_part(t->list, t->list->shift[site], dtheta);
    oq_real *dout = linear == OQ_V ? oq_part(t->list, t->list->shift[OQ_SITE_VO], dtheta) : NULL;
    for (int64_t r = 0; r < shape.out; r++) {
        const oq_real *w = oq_unrotated_weight(t, linear) + r * shape.in;
        for (int64_t c = 0; din && c < shape.in; c++) din[shift_index(t, site, linear, c)] += dbias[r] * w[c];
        if (dout) dout[r] -= dbias[r];
    }
}
