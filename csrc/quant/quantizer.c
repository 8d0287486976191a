#include "quant/quantizer.h"

/* Steps from 0 to the largest magnitude of a symmetric grid. */
static double symmetric_steps(oq_quantizer quantizer)
{
    return quantizer.full_range ? ((1 << quantizer.bits) - 1) / 2.0 : (1 << (quantizer.bits - 1)) - 1;
}

/* In double: hi - lo of two huge floats must not overflow. */
static double exact_scale(oq_quantizer quantizer, oq_range range)
{
    const double lo = (double)range.lo, hi = (double)range.hi;
    if (quantizer.symmetric) return fmax(-lo, hi) / symmetric_steps(quantizer);
    return (hi - lo) / ((1 << quantizer.bits) - 1);
}

double oq_rounded_scale(int bits, double h)
{
    int exponent;
    if (!bits || h == 0) return h;
    (void)frexp(h, &exponent);
    const double unit = ldexp(1, exponent - bits > -24 ? exponent - bits : -24);
    const double largest = ldexp(1 - ldexp(1, -bits), 5 + bits);
    return fmin(fmax(rint(h / unit) * unit, unit), largest);
}

oq_grid oq_grid_from_range(oq_quantizer quantizer, oq_range range)
{
    const double h = oq_rounded_scale(quantizer.scale_bits, exact_scale(quantizer, range));
    oq_grid grid = {.scale = (oq_real)h, .zero = 0, .top = oq_top_code(quantizer.bits)};
    if (h == 0) grid.scale = 1; /* an all-zero group: q = z, x^ = 0 */
    if (grid.scale < OQ_REAL_MIN_NORMAL) grid.scale = OQ_REAL_MIN_NORMAL;
    if (quantizer.symmetric)
        grid.zero = (oq_real)(1 << (quantizer.bits - 1));
    else
        grid.zero = (oq_real)fmin(fmax(rint(-(double)range.lo / (double)grid.scale), 0), (double)grid.top);
    return grid;
}

void oq_grid_backward(oq_quantizer quantizer, oq_range range, double dscale, oq_range *drange)
{
    if (exact_scale(quantizer, range) < (double)OQ_REAL_MIN_NORMAL) return; /* h is held: no gradient */
    if (quantizer.symmetric) {
        const double d = dscale / symmetric_steps(quantizer);
        if (range.hi >= -range.lo)
            drange->hi += (oq_real)d;
        else
            drange->lo -= (oq_real)d;
        return;
    }
    const double d = dscale / ((1 << quantizer.bits) - 1);
    drange->hi += (oq_real)d;
    drange->lo -= (oq_real)d;
}
