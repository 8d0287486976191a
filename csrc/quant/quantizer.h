/* The uniform quantizer: bits, grid, and one run of values on one grid.
 *   q = clamp(round(x / h) + z, 0, 2^n - 1),  x^ = (q - z) h          (OmniQuant, eq. 2)
 * Symmetric grids use the same formula with z = 2^(n-1), so codes are unsigned
 * everywhere.  Zero is always on the grid. */
#ifndef OQ_QUANT_QUANTIZER_H
#define OQ_QUANT_QUANTIZER_H

#include "base/real.h"

typedef struct {
    int bits; /* 2..8; 16 and more: not quantized */
    bool symmetric;
    bool full_range; /* symmetric step = 2 absmax / (2^n - 1), as compressed-tensors activations have it */
    int scale_bits;  /* 0: the scale as it comes; 11: rounded to float16; 7: so that z h is one too, at 4 bits */
} oq_quantizer;

typedef struct {
    oq_real lo, hi; /* lo <= 0 <= hi */
} oq_range;

typedef struct {
    oq_real scale; /* h */
    oq_real zero;  /* z, an integer in [0, top] */
    oq_real top;   /* 2^n - 1 */
} oq_grid;

static inline bool oq_is_quantized(oq_quantizer quantizer) { return quantizer.bits < 16; }
/* What no |q - z| exceeds. */
static inline int oq_most_centred(oq_quantizer quantizer)
{
    return quantizer.symmetric ? 1 << (quantizer.bits - 1) : (1 << quantizer.bits) - 1;
}
static inline oq_real oq_top_code(int bits) { return (oq_real)((1 << bits) - 1); }

/* h as a float16 that leaves 11 - bits of its own to the zero point: of so many significant ones, and a multiple of
 * 2^-24; bits 0: h. */
double oq_rounded_scale(int bits, double h);
/* The grid that covers a range. */
oq_grid oq_grid_from_range(oq_quantizer quantizer, oq_range range);
/* d(range) += d(grid.scale) * dh/d(range). The rounding of scale and zero point is straight through. */
void oq_grid_backward(oq_quantizer quantizer, oq_range range, double dscale, oq_range *drange);

#endif
