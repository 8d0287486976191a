#ifndef OQ_MATH_TRANSPOSE_AVX2_H
#define OQ_MATH_TRANSPOSE_AVX2_H

#include "base/avx2.h"

/* to [8, 8] = x transposed. */
INLINE void oq_transpose_8x8(const __m256 x[8], __m256 to[8])
{
    __m256 pairs[8], fours[8];
    UNROLL for (int i = 0; i < 8; i += 2)
    {
        pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
    {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        to[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        to[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

#endif
