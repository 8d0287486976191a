/* What the products on AVX2 share. */
#ifndef OQ_MATH_AVX2_H
#define OQ_MATH_AVX2_H

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE AVX2 static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
/* What follows is read through `pointer` only once both sums are there. Left to itself gcc 12 begins a loop's body with
 * all of its loads and products and has no registers left for the sums. */
#define IN_TURN(pointer, sum, other) __asm__ volatile("" : "+r"(pointer), "+x"(sum), "+x"(other))

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
