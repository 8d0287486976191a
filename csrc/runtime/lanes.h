/* Sixteen floats at a time, written once and compiled for AVX-512, AVX2 and plain C.  A file that includes this
 * says which by OQ_ISA: 2, 1 or 0.  All three round alike (products are fused, sums of lanes go by one tree), so
 * results are the same bits. */
#ifndef OQ_RUNTIME_LANES_H
#define OQ_RUNTIME_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "math/bf16.h"
#include "runtime/half.h"

#define LANES 16

#if OQ_ISA == 2
#include <immintrin.h>
#define LANES_TARGET __attribute__((target("avx512f,avx2,fma,f16c")))
typedef __m512 lanes;
#elif OQ_ISA == 1
#include <immintrin.h>
#define LANES_TARGET __attribute__((target("avx2,fma,f16c")))
typedef struct {
    __m256 low, high;
} lanes;
#else
#define LANES_TARGET
typedef struct {
    float v[LANES];
} lanes;
#endif

#define LANES_INLINE static inline LANES_TARGET __attribute__((always_inline))

#if OQ_ISA == 2

LANES_INLINE lanes lanes_all(float x) { return _mm512_set1_ps(x); }
LANES_INLINE lanes lanes_load(const float *x) { return _mm512_loadu_ps(x); }
LANES_INLINE void lanes_store(float *x, lanes a) { _mm512_storeu_ps(x, a); }
LANES_INLINE lanes lanes_multiply(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
LANES_INLINE lanes lanes_subtract(lanes a, lanes b) { return _mm512_sub_ps(a, b); }
LANES_INLINE lanes lanes_multiply_add(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }
LANES_INLINE float lanes_sum(lanes a) { return _mm512_reduce_add_ps(a); }
LANES_INLINE __m128i load_bytes(const void *x) { return _mm_loadu_si128(x); }
LANES_INLINE lanes lanes_half(const uint16_t *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)x)); }
LANES_INLINE lanes lanes_bfloat(const uint16_t *x)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
LANES_INLINE lanes lanes_bytes(const uint8_t *x)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_bytes(x)));
}
LANES_INLINE lanes lanes_low(const uint8_t *x)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(load_bytes(x), _mm_set1_epi8(15))));
}
LANES_INLINE lanes lanes_high(const uint8_t *x)
{
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_bytes(x)), 4));
}

#elif OQ_ISA == 1

#define BOTH(low_half, high_half) ((lanes){.low = (low_half), .high = (high_half)})

LANES_INLINE lanes lanes_all(float x) { return BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
LANES_INLINE lanes lanes_load(const float *x) { return BOTH(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)); }
LANES_INLINE void lanes_store(float *x, lanes a)
{
    _mm256_storeu_ps(x, a.low);
    _mm256_storeu_ps(x + 8, a.high);
}
LANES_INLINE lanes lanes_multiply(lanes a, lanes b)
{
    return BOTH(_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high));
}
LANES_INLINE lanes lanes_subtract(lanes a, lanes b)
{
    return BOTH(_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high));
}
LANES_INLINE lanes lanes_multiply_add(lanes a, lanes b, lanes c)
{
    return BOTH(_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high));
}
LANES_INLINE float lanes_sum(lanes a)
{
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
LANES_INLINE __m256 of_words(__m128i words)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
LANES_INLINE __m256 of_bytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
LANES_INLINE __m128i load_bytes(const void *x) { return _mm_loadu_si128(x); }
LANES_INLINE lanes lanes_half(const uint16_t *x)
{
    return BOTH(_mm256_cvtph_ps(load_bytes(x)), _mm256_cvtph_ps(load_bytes(x + 8)));
}
LANES_INLINE lanes lanes_bfloat(const uint16_t *x)
{
    return BOTH(of_words(load_bytes(x)), of_words(load_bytes(x + 8)));
}
LANES_INLINE lanes lanes_wide(__m128i bytes) { return BOTH(of_bytes(bytes), of_bytes(_mm_srli_si128(bytes, 8))); }
LANES_INLINE lanes lanes_bytes(const uint8_t *x) { return lanes_wide(load_bytes(x)); }
LANES_INLINE lanes lanes_low(const uint8_t *x)
{
    return lanes_wide(_mm_and_si128(load_bytes(x), _mm_set1_epi8(15)));
}
LANES_INLINE lanes lanes_high(const uint8_t *x)
{
    return lanes_wide(_mm_and_si128(_mm_srli_epi16(load_bytes(x), 4), _mm_set1_epi8(15)));
}

#else

#define EACH(expression)                                        \
    lanes result;                                               \
    for (int l = 0; l < LANES; l++) result.v[l] = (expression); \
    return result

LANES_INLINE lanes lanes_all(float x) { EACH(x); }
LANES_INLINE lanes lanes_load(const float *x) { EACH(x[l]); }
LANES_INLINE void lanes_store(float *x, lanes a) { memcpy(x, a.v, sizeof a.v); }
LANES_INLINE lanes lanes_multiply(lanes a, lanes b) { EACH(a.v[l] * b.v[l]); }
LANES_INLINE lanes lanes_subtract(lanes a, lanes b) { EACH(a.v[l] - b.v[l]); }
LANES_INLINE lanes lanes_multiply_add(lanes a, lanes b, lanes c) { EACH(fmaf(a.v[l], b.v[l], c.v[l])); }
LANES_INLINE float lanes_sum(lanes a)
{
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++) a.v[l] += a.v[l + step];
    return a.v[0];
}
LANES_INLINE lanes lanes_half(const uint16_t *x) { EACH(oq_float_of_half(x[l])); }
LANES_INLINE lanes lanes_bfloat(const uint16_t *x) { EACH(oq_float_of_bf16(x[l])); }
LANES_INLINE lanes lanes_bytes(const uint8_t *x) { EACH((float)x[l]); }
LANES_INLINE lanes lanes_low(const uint8_t *x) { EACH((float)(x[l] & 15)); }
LANES_INLINE lanes lanes_high(const uint8_t *x) { EACH((float)(x[l] >> 4)); }

#endif

/* The first n < 16 of x, zeros behind them. */
LANES_INLINE lanes lanes_load_part(const float *x, int64_t n)
{
    float some[LANES] = {0};
    memcpy(some, x, (size_t)n * sizeof *x);
    return lanes_load(some);
}

#endif
