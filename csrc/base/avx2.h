/* What code for AVX2 is written with. */
#ifndef OQ_BASE_AVX2_H
#define OQ_BASE_AVX2_H

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE AVX2 static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define REPEAT4 _Pragma("GCC unroll 4") /* a loop's body, four times between two looks at its end */
/* What follows is read through `pointer` only once both sums are there. Left to itself gcc 12 begins a loop's body with
 * all of its loads and products and has no registers left for the sums. */
#define IN_TURN(pointer, sum, other) __asm__ volatile("" : "+r"(pointer), "+x"(sum), "+x"(other))
/* What was stored is read again behind this: gcc would keep totals in registers over a loop that has none to spare. */
#define TO_MEMORY __asm__ volatile("" ::: "memory")

INLINE __m256i oq_load_words(const void *from) { return _mm256_loadu_si256(from); }
INLINE void oq_store_words(void *to, __m256i x) { _mm256_storeu_si256(to, x); }

#endif
