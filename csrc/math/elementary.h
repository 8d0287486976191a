/* exp, the logistic function and tanh for hot loops: branch-free, so that compilers vectorise them. */
#ifndef OQ_MATH_ELEMENTARY_H
#define OQ_MATH_ELEMENTARY_H

#include <string.h>

#include "base/real.h"

#ifdef OQ_DOUBLE
OQ_INLINE double oq_exp(double x) { return exp(x); }
#else
/* x = n ln 2 + r, |r| <= ln(2) / 2; e^r by its Taylor series of degree 7 in Horner form (truncation error below
 * 2e-8 / 8! * ..., under half a unit in the last place), 2^n by its exponent bits. About 1 ulp; 0 below -87.3. */
OQ_INLINE float oq_exp(float x)
{
    const float clamped = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
    const float n = rintf(clamped * 1.44269504f);
    const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (int32_t)n * (1 << 23);
    int32_t p_bits;
    memcpy(&p_bits, &p, sizeof p_bits);
    p_bits += bits;
    memcpy(&p, &p_bits, sizeof p);
    return x < -87.3f ? 0.0f : (x != x ? x : p);
}
#endif

OQ_INLINE oq_real oq_logistic(oq_real x) { return 1 / (1 + oq_exp(-x)); }

OQ_INLINE oq_real oq_tanh(oq_real x) { return 1 - 2 / (oq_exp(2 * x) + 1); }

#endif
