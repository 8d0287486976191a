/* What the kernels for AVX-512 VNNI and for AMX share: codes from packed bits, and what is done to sums of a run. */
#ifndef OQ_KERNELS_AVX512_H
#define OQ_KERNELS_AVX512_H

#include <string.h>

#include "base/avx512.h"
#include "kernels/kernel.h"

/* Inputs 4j .. 4j + 3 of a unit. */
INLINE __m512i quad_of(const uint8_t *unit, const int j, const int bits)
{
    const __m512i low_bits = _mm512_set1_epi8((char)(bits == 4 ? 15 : 3));
    if (bits == 8) return _mm512_loadu_si512(unit);
    if (bits != 3) {
        const __m512i all = _mm512_loadu_si512(unit);
        return _mm512_and_si512(j ? _mm512_srli_epi32(all, (unsigned)(j * bits)) : all, low_bits);
    }
    const __m512i low = _mm512_loadu_si512(unit + j / 4 * 64), high = _mm512_loadu_si512(unit + 128);
    const __m512i bit2 =
        j < 2 ? _mm512_slli_epi32(high, (unsigned)(2 - j)) : _mm512_srli_epi32(high, (unsigned)(j - 2));
    /* Bits 0 and 1 of the one, bit 2 of the other. */
    const __m512i both =
        _mm512_ternarylogic_epi32(low_bits, _mm512_srli_epi32(low, (unsigned)(j % 4 * 2)), bit2, 0xca);
    return _mm512_and_si512(both, _mm512_set1_epi8(7));
}

/* What corrects 16 sums for the zero points: sum(w) and z_w, 16 bits each, of one segment. */
INLINE __m512i columns_of(const oq_tiles *t, const oq_run *run, int64_t lane, int64_t segment)
{
    const __m128i zeros = _mm_loadu_si128((const void *)(t->zeros + run->group * t->zero_stride + lane));
    const __m256i sums = _mm256_loadu_si256((const void *)(t->code_sums + segment * t->width + lane));
    return _mm512_or_si512(_mm512_cvtepu16_epi32(sums), _mm512_slli_epi32(_mm512_cvtepu8_epi32(zeros), 16));
}

/* Where a run has several segments, 16 bits do not hold what corrects it for the zero points: sum(w) of each output
 * and -sum(a - z_a) of a row in 32 bits. */
VNNI static inline void add_segments(const oq_tiles *t, const oq_run *run, int32_t sums[OQ_PANEL])
{
    memset(sums, 0, OQ_PANEL * sizeof *sums);
    for (int64_t s = run->segment; s < run->segment + run->segments; s++)
        for (int64_t i = 0; i < t->width; i++) sums[i] += t->code_sums[s * t->width + i];
}

INLINE int32_t row_total(const oq_run *run, const int32_t *pairs)
{
    int32_t sum = 0;
    for (int64_t s = run->segment; s < run->segment + run->segments; s++) sum += (int16_t)(pairs[s] >> 16);
    return sum;
}

/* The sums of all planes in float: 256 high + low, exact before it is rounded, or 65536 high + 256 middle + low,
 * rounded from the left. */
INLINE __m512 join(const __m512i *sums, const int planes)
{
    const __m512 base = _mm512_set1_ps(256);
    if (planes == 1) return _mm512_cvtepi32_ps(sums[0]);
    if (planes == 2) return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums[0], 8), sums[1]));
    const __m512 high =
        _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[0]), base), _mm512_cvtepi32_ps(sums[1]));
    return _mm512_add_ps(_mm512_mul_ps(high, base), _mm512_cvtepi32_ps(sums[2]));
}

/* to [16] = before + sum scale, times x's scale of the segment where it has one. */
INLINE void add_scaled(__mmask16 before, float *to, __m512 sum, __m512 scale, const float *x_scale)
{
    sum = _mm512_mul_ps(sum, scale);
    if (x_scale) sum = _mm512_mul_ps(sum, _mm512_set1_ps(*x_scale));
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_maskz_loadu_ps(before, to), sum));
}

#endif
