/* What code for AVX-512 VNNI is written with. */
#ifndef OQ_BASE_AVX512_H
#define OQ_BASE_AVX512_H

#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define INLINE VNNI static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* sum += four products of a lane, of u without and of s with a sign. As an instruction rather than an intrinsic: GCC
 * copies the sums to and fro around the intrinsic and spills them where 24 are kept. */
INLINE void oq_add_products(__m512i *sum, __m512i u, __m512i s)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(u), "v"(s));
}

#endif
