#include "math/sliver.h"

#include "base/size.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "base/avx512.h"

enum { SIDE = 16, TILES = OQ_SLIVER / SIDE, LINE = 64 };

/* Of 64 bytes those that are there. */
INLINE __m512i load(const int8_t *x, int64_t count)
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

/* What lies by columns: 16 of them, 16 words of k at a time. */
INLINE void pack_columns(const oq_right *b, int64_t column, int8_t *to)
{
    const int64_t quads = oq_quads(b);
    for (int64_t q = 0; q < quads; q += SIDE)
        for (int tile = 0; tile < TILES; tile++) {
            __m512i x[SIDE];
            UNROLL for (int i = 0; i < SIDE; i++)
            {
                const int64_t c = column + tile * SIDE + i;
                x[i] = c < b->n ? load(b->bytes + c * b->k + 4 * q, b->k - 4 * q) : _mm512_setzero_si512();
            }
            transpose_words(x);
            for (int i = 0; i < oq_least(SIDE, quads - q); i++)
                _mm512_storeu_si512(to + (q + i) * OQ_QUAD + tile * LINE, x[i]);
        }
}

/* What lies by rows: four of them, 64 columns, shuffled like cards. */
INLINE void pack_quad(const int8_t *x, int64_t ld, int64_t rows, int64_t columns, __m512i flip, int8_t *to)
{
    __m512i r[4], out[4];
    UNROLL for (int i = 0; i < 4; i++) r[i] =
        i < rows ? _mm512_xor_si512(load(x + i * ld, columns), flip) : _mm512_setzero_si512();
    const __m512i low = _mm512_unpacklo_epi8(r[0], r[1]), high = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i low2 = _mm512_unpacklo_epi8(r[2], r[3]), high2 = _mm512_unpackhi_epi8(r[2], r[3]);
    out[0] = _mm512_unpacklo_epi16(low, low2);
    out[1] = _mm512_unpackhi_epi16(low, low2);
    out[2] = _mm512_unpacklo_epi16(high, high2);
    out[3] = _mm512_unpackhi_epi16(high, high2);
    transpose_quarters(out);
    UNROLL for (int i = 0; i < 4; i++) _mm512_storeu_si512(to + i * LINE, out[i]);
}

INLINE void pack_rows(const oq_right *b, int64_t column, int8_t *to)
{
    const __m512i flip = _mm512_set1_epi8((char)b->flip);
    for (int64_t k = 0; k < b->k; k += 4, to += OQ_QUAD)
        pack_quad(b->bytes + k * b->n + column, b->n, b->k - k, b->n - column, flip, to);
}

INLINE void add_up(const int8_t *packed, int64_t quads, int32_t *sums)
{
    __m512i total[TILES];
    UNROLL for (int n = 0; n < TILES; n++) total[n] = _mm512_setzero_si512();
    for (int64_t q = 0; q < quads; q++)
        UNROLL for (int n = 0; n < TILES; n++)
            oq_add_products(&total[n], _mm512_set1_epi8(1), _mm512_loadu_si512(packed + q * OQ_QUAD + n * LINE));
    UNROLL for (int n = 0; n < TILES; n++) _mm512_storeu_si512(sums + n * SIDE, total[n]);
}

VNNI void oq_pack_sliver(const oq_right *b, int64_t column, int8_t *to, int32_t *sums)
{
    if (b->layout == OQ_BY_ROWS)
        pack_rows(b, column, to);
    else
        pack_columns(b, column, to);
    add_up(to, oq_quads(b), sums);
}

#else

void oq_pack_sliver(const oq_right *b, int64_t column, int8_t *to, int32_t *sums)
{
    (void)b, (void)column, (void)to, (void)sums;
}

#endif
