/* Products of words of 32 bits, four bytes or two bfloat16, with sums of the same width in 24 registers: a tile of 6
 * rows by 64 columns over all of k, a word of a row sent to all lanes. A is read as it lies, B in slivers. */
#ifndef OQ_MATH_WORDS_AVX512_H
#define OQ_MATH_WORDS_AVX512_H

#include <stdint.h>
#include <string.h>

#include "base/avx512.h"
#include "math/sliver.h"

enum { OQ_TILE_ROWS = 6, OQ_TILE_VECTORS = 4, OQ_WORD = 4 };

#define OQ_FOR_TILE_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6)

typedef enum { OQ_WORDS_OF_BYTES, OQ_WORDS_OF_HALVES } oq_words;
typedef __m512i oq_tile_sums[OQ_TILE_ROWS][OQ_TILE_VECTORS];

/* Some rows of A: words, strides in bytes, and behind a row's last word what fills none. */
typedef struct {
    const uint8_t *a;
    int64_t to_row, to_word;
    int64_t words, rest;
} oq_left;

/* As an instruction rather than an intrinsic: GCC copies the sums to and fro around the intrinsic and spills them
 * where 24 are kept. Bytes of x have no sign, those of w have one. */
INLINE void oq_add_products(__m512i *sum, __m512i x, __m512i w, const oq_words kind)
{
    if (kind == OQ_WORDS_OF_BYTES)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w));
    else
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(x), "v"(w));
}

INLINE void oq_add_words(oq_tile_sums sums, const int rows, const uint8_t *a, int64_t to_row, int64_t to_word,
                         const int8_t *b, int64_t words, const oq_words kind)
{
    for (int64_t i = 0; i < words; i++, a += to_word, b += OQ_SLIVER * OQ_WORD) {
        __m512i w[OQ_TILE_VECTORS];
        UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++) w[n] = _mm512_loadu_si512(b + 64 * n);
        UNROLL for (int r = 0; r < rows; r++)
        {
            int32_t word;
            memcpy(&word, a + r * to_row, sizeof word);
            const __m512i x = _mm512_set1_epi32(word);
            UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++) oq_add_products(&sums[r][n], x, w[n], kind);
        }
    }
}

/* sums = a b; beyond its rest, A's last word is zeros. */
INLINE void oq_multiply_tile(oq_tile_sums sums, const int rows, const oq_left *a, const int8_t *b,
                             const oq_words kind)
{
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++) sums[r][n] = _mm512_setzero_si512();
    oq_add_words(sums, rows, a->a, a->to_row, a->to_word, b, a->words, kind);
    if (!a->rest) return;
    uint8_t last[OQ_TILE_ROWS][OQ_WORD] = {{0}};
    for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < a->rest; i++) last[r][i] = a->a[r * a->to_row + a->words * a->to_word + i];
    oq_add_words(sums, rows, last[0], OQ_WORD, OQ_WORD, b + a->words * OQ_SLIVER * OQ_WORD, 1, kind);
}

#endif
