#include "math/sliver.h"

#include "base/size.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "math/words_avx512.h"

enum { SIDE = 16, LINE = 64, WORDS = OQ_SLIVER * OQ_WORD /* bytes of one word of all columns */ };

/* Of 64 bytes those that are there. */
INLINE __m512i load(const uint8_t *x, int64_t count)
{
    const __mmask64 mask = count >= LINE ? ~(__mmask64)0 : ((__mmask64)1 << (count < 0 ? 0 : count)) - 1;
    return _mm512_maskz_loadu_epi8(mask, x);
}

/* Four words of 128 bits in each of four vectors. */
INLINE void transpose_quarters(__m512i x[4])
{
    const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), d = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    x[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    x[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    x[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

/* Words of 32 bits: of each quarter a square of 4 by 4, then the quarters. */
INLINE void transpose_words(__m512i x[SIDE])
{
    __m512i fours[4][4];
    UNROLL for (int i = 0; i < 4; i++)
    {
        const __m512i *four = x + 4 * i;
        const __m512i a = _mm512_unpacklo_epi32(four[0], four[1]), b = _mm512_unpackhi_epi32(four[0], four[1]);
        const __m512i c = _mm512_unpacklo_epi32(four[2], four[3]), d = _mm512_unpackhi_epi32(four[2], four[3]);
        fours[0][i] = _mm512_unpacklo_epi64(a, c);
        fours[1][i] = _mm512_unpackhi_epi64(a, c);
        fours[2][i] = _mm512_unpacklo_epi64(b, d);
        fours[3][i] = _mm512_unpackhi_epi64(b, d);
    }
    UNROLL for (int j = 0; j < 4; j++)
    {
        transpose_quarters(fours[j]);
        UNROLL for (int i = 0; i < 4; i++) x[4 * i + j] = fours[j][i];
    }
}

/* 16 columns, 16 words of each at a time. */
VNNI void oq_sliver_of_columns(const oq_sliver_source *b, int size, int8_t *to)
{
    const int64_t deep = b->k * size, words = oq_pieces(deep, OQ_WORD);
    for (int64_t word = 0; word < words; word += SIDE)
        for (int64_t column = 0; column < OQ_SLIVER; column += SIDE) {
            const int64_t there = b->columns - column;
            const uint8_t *from = b->x + column * b->ld + word * OQ_WORD;
            __m512i x[SIDE];
            UNROLL for (int i = 0; i < SIDE; i++) x[i] =
                i < there ? load(from + i * b->ld, deep - word * OQ_WORD) : _mm512_setzero_si512();
            transpose_words(x);
            for (int i = 0; i < oq_least(SIDE, words - word); i++)
                _mm512_storeu_si512(to + (word + i) * WORDS + column * OQ_WORD, x[i]);
        }
}

/* Four rows, shuffled like cards. */
INLINE void pack_four(const oq_sliver_source *b, int64_t row, __m512i flip, int8_t *to)
{
    __m512i r[4], out[4];
    UNROLL for (int i = 0; i < 4; i++) r[i] =
        row + i < b->k ? _mm512_xor_si512(load(b->x + (row + i) * b->ld, b->columns), flip) : _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi8(r[0], r[1]), high = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i low2 = _mm512_unpacklo_epi8(r[2], r[3]), high2 = _mm512_unpackhi_epi8(r[2], r[3]);
    out[0] = _mm512_unpacklo_epi16(low, low2);
    out[1] = _mm512_unpackhi_epi16(low, low2);
    out[2] = _mm512_unpacklo_epi16(high, high2);
    out[3] = _mm512_unpackhi_epi16(high, high2);
    transpose_quarters(out);
    UNROLL for (int i = 0; i < 4; i++) _mm512_storeu_si512(to + i * LINE, out[i]);
}

VNNI void oq_sliver_of_byte_rows(const oq_sliver_source *b, uint8_t flip, int8_t *to)
{
    const __m512i bits = _mm512_set1_epi8((char)flip);
    for (int64_t row = 0; row < b->k; row += 4, to += WORDS) pack_four(b, row, bits, to);
}

/* Two rows of 32 columns: of each quarter the lower words of its columns, and the upper. */
INLINE void pack_two(const uint8_t *x, const uint8_t *below, int64_t columns, int8_t *to)
{
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512i a = load(x, 2 * columns), b = below ? load(below, 2 * columns) : _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(to + LINE, _mm512_permutex2var_epi64(low, second, high));
}

VNNI void oq_sliver_of_half_rows(const oq_sliver_source *b, int8_t *to)
{
    for (int64_t row = 0; row < b->k; row += 2, to += WORDS) {
        const uint8_t *x = b->x + row * b->ld, *below = row + 1 < b->k ? x + b->ld : NULL;
        pack_two(x, below, b->columns, to);
        pack_two(x + LINE, OQ_AT(below, LINE), b->columns - OQ_SLIVER / 2, to + 2 * LINE);
    }
}

VNNI void oq_sliver_sums(const int8_t *packed, int64_t deep, int32_t *sums)
{
    __m512i total[OQ_TILE_VECTORS];
    UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++) total[n] = _mm512_setzero_si512();
    for (const int8_t *word = packed; word < packed + oq_sliver_bytes(deep); word += WORDS)
        UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++)
            oq_add_products(&total[n], _mm512_set1_epi8(1), _mm512_loadu_si512(word + n * LINE), OQ_WORDS_OF_BYTES);
    UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++) _mm512_storeu_si512(sums + n * SIDE, total[n]);
}

#else

void oq_sliver_of_columns(const oq_sliver_source *b, int size, int8_t *to) { (void)b, (void)size, (void)to; }
void oq_sliver_of_byte_rows(const oq_sliver_source *b, uint8_t flip, int8_t *to) { (void)b, (void)flip, (void)to; }
void oq_sliver_of_half_rows(const oq_sliver_source *b, int8_t *to) { (void)b, (void)to; }
void oq_sliver_sums(const int8_t *packed, int64_t deep, int32_t *sums) { (void)packed, (void)deep, (void)sums; }

#endif

void oq_sliver_of(const oq_right *b, int64_t column, int8_t *to, int32_t *sums)
{
    const bool by_rows = b->layout == OQ_BY_ROWS;
    const oq_sliver_source from = {.x = (const uint8_t *)b->bytes + (by_rows ? column : column * b->k),
                                   .ld = by_rows ? b->n : b->k,
                                   .columns = oq_least(OQ_SLIVER, b->n - column),
                                   .k = b->k};
    if (by_rows)
        oq_sliver_of_byte_rows(&from, b->flip, to);
    else
        oq_sliver_of_columns(&from, 1, to);
    oq_sliver_sums(to, b->k, sums);
}
