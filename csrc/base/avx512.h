/* What code for AVX-512 VNNI is written with. */
#ifndef OQ_BASE_AVX512_H
#define OQ_BASE_AVX512_H

#include <immintrin.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define INLINE VNNI static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#endif
