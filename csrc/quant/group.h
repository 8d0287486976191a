/* One group of values on one grid: its range, its codes and their forms, the straight-through gradients.  Inline,
 * so that loops are compiled for the ISA of whoever calls them. */
#ifndef OQ_QUANT_GROUP_H
#define OQ_QUANT_GROUP_H

#include "base/size.h"
#include "math/bf16.h"
#include "quant/forms.h"
#include "quant/lanes.h"
#include "quant/quantizer.h"

enum { OQ_RANGE_LANES = 32 }; /* extremes depend on no order: as many as hide latency and fit AVX2 */

/* Zero is in every range, so the accumulators start there. */
OQ_INLINE oq_range oq_find_range(const oq_real *x, int64_t n)
{
    oq_real lo[OQ_RANGE_LANES] = {0}, hi[OQ_RANGE_LANES] = {0};
    int64_t i = 0;
    for (; i + OQ_RANGE_LANES <= n; i += OQ_RANGE_LANES)
        for (int j = 0; j < OQ_RANGE_LANES; j++) {
            lo[j] = oq_min(x[i + j], lo[j]);
            hi[j] = oq_max(x[i + j], hi[j]);
        }
    for (int j = 0; j < n - i; j++) {
        lo[j] = oq_min(x[i + j], lo[j]);
        hi[j] = oq_max(x[i + j], hi[j]);
    }
    for (int half = OQ_RANGE_LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) {
            lo[j] = oq_min(lo[j + half], lo[j]);
            hi[j] = oq_max(hi[j + half], hi[j]);
        }
    return (oq_range){.lo = lo[0], .hi = hi[0]};
}

OQ_INLINE oq_range oq_range_of_both(oq_range a, oq_range b)
{
    return (oq_range){.lo = oq_min(b.lo, a.lo), .hi = oq_max(b.hi, a.hi)};
}

OQ_INLINE oq_real oq_clamp_code(oq_real q, oq_real top) { return oq_min(oq_max(q, 0), top); }

/* q - z of some values; v: their learned offsets, or NULL. */
OQ_INLINE void oq_centred_codes(const oq_real *x, const oq_real *v, oq_real *c, int64_t n, oq_grid grid)
{
    if (v)
        for (int64_t i = 0; i < n; i++)
            c[i] = oq_clamp_code(oq_rint(x[i] / grid.scale + v[i]) + grid.zero, grid.top) - grid.zero;
    else
        for (int64_t i = 0; i < n; i++)
            c[i] = oq_clamp_code(oq_rint(x[i] / grid.scale) + grid.zero, grid.top) - grid.zero;
}

/* The wanted forms of centred codes; offset is their place in the matrix. Returns their sum. */
OQ_INLINE int32_t oq_write_forms(const oq_forms *f, int64_t offset, const oq_real *c, int64_t n, oq_grid grid)
{
    if (f->real) {
        oq_real *to = f->real + offset;
        for (int64_t i = 0; i < n; i++) to[i] = c[i] * grid.scale;
    }
    if (f->half) {
        uint16_t *to = f->half + offset;
        for (int64_t i = 0; i < n; i++) to[i] = oq_bf16_of(c[i] * grid.scale);
    }
    if (f->codes) {
        uint8_t *to = f->codes + offset;
        for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)(int32_t)(c[i] + grid.zero);
    }
    int32_t sum = 0;
    if (f->centred) {
        int8_t *to = f->centred + offset;
        for (int64_t i = 0; i < n; i++) {
            const int32_t code = (int32_t)c[i];
            to[i] = (int8_t)code;
            sum += code;
        }
    }
    return sum;
}

/* sums [OQ_LANES] += of so many values: a constant but at a run's end, so that lanes stay in registers. */
OQ_INLINE void oq_backward_lanes(const oq_real *x, const oq_real *v, const oq_real *dout, oq_real *dx, oq_real *dv,
                                 oq_grid grid, int64_t lanes, oq_real *restrict sums)
{
#pragma GCC ivdep
    for (int64_t j = 0; j < lanes; j++) {
        const oq_real u = x[j] / grid.scale, raw = oq_rint(v ? u + v[j] : u) + grid.zero;
        const oq_real q = oq_clamp_code(raw, grid.top), d = dout[j];
        const bool inside = raw == q;
        sums[j] += d * ((q - grid.zero) - (inside ? u : 0));
        if (dv) dv[j] += inside ? d * grid.scale : 0;
        if (dx) dx[j] = inside ? d : 0;
    }
}

/* sums [OQ_LANES] += dh by lane; dx = dout inside the range and 0 where clipped (dx may be NULL).  Offsets v and
 * their dv may be NULL; under them, x^ = round(u + v) h still has dx^/dh = (q - z) - u. */
OQ_INLINE void oq_fake_quantize_values_backward(const oq_real *x, const oq_real *v, const oq_real *dout, oq_real *dx,
                                                oq_real *dv, int64_t n, oq_grid grid, oq_real *sums)
{
    oq_real lanes[OQ_LANES];
    int64_t i = 0;
    for (int j = 0; j < OQ_LANES; j++) lanes[j] = sums[j];
    for (; i + OQ_LANES <= n; i += OQ_LANES)
        oq_backward_lanes(x + i, OQ_AT(v, i), dout + i, OQ_AT(dx, i), OQ_AT(dv, i), grid, OQ_LANES,
                          lanes);
    oq_backward_lanes(x + i, OQ_AT(v, i), dout + i, OQ_AT(dx, i), OQ_AT(dv, i), grid, n - i, lanes);
    for (int j = 0; j < OQ_LANES; j++) sums[j] = lanes[j];
}

/* How many elements attain each extreme. */
typedef struct {
    int32_t highest, lowest;
} oq_extremes;

/* Adds those of x; returns whether there are any. */
OQ_INLINE bool oq_count_extremes(const oq_real *x, int64_t n, oq_range range, oq_extremes *ties)
{
    int32_t highest = 0, lowest = 0;
    for (int64_t i = 0; i < n; i++) {
        highest += x[i] == range.hi;
        lowest += x[i] == range.lo;
    }
    ties->highest += highest;
    ties->lowest += lowest;
    return highest || lowest;
}

/* An extreme of exactly 0 is the included zero, which is no element's. */
OQ_INLINE oq_real oq_share(oq_real extreme, oq_real gradient, int32_t ties)
{
    return extreme == 0 || gradient == 0 ? 0 : gradient / (oq_real)ties;
}

/* Gradients of the extreme values are shared equally by the elements that attain them. */
OQ_INLINE oq_range oq_shares(oq_range range, oq_range drange, oq_extremes ties)
{
    return (oq_range){.lo = oq_share(range.lo, drange.lo, ties.lowest),
                      .hi = oq_share(range.hi, drange.hi, ties.highest)};
}

OQ_INLINE void oq_spread_to_extremes(const oq_real *x, oq_real *dx, int64_t n, oq_range range, oq_range shares)
{
    if (shares.lo == 0 && shares.hi == 0) return;
    for (int64_t i = 0; i < n; i++)
        dx[i] += (x[i] == range.hi ? shares.hi : 0) + (x[i] == range.lo ? shares.lo : 0);
}

#endif
