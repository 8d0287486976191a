#include "math/amx_pack.h"

oq_operand oq_part_of(oq_operand whole, int64_t place, int64_t count, int64_t first, int64_t length)
{
    const int64_t along = whole.across ? place : first, below = whole.across ? first : place;
    whole.from += below * whole.ld + along * whole.size;
    whole.count = count;
    whole.length = length;
    return whole;
}

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define INLINE AVX512 static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { SIDE = OQ_AMX_ROWS };

/* x [16, 16] of words, transposed: quarters of 4 by 4, then their places. */
INLINE void transpose(__m512i x[16])
{
    __m512i y[16];
    UNROLL for (int i = 0; i < 16; i += 2)
    {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
    {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        y[i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x88);
        y[4 + i] = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xdd);
        y[8 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x88);
        y[12 + i] = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        x[i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0x88);
        x[4 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0x88);
        x[8 + i] = _mm512_shuffle_i32x4(y[i], y[8 + i], 0xdd);
        x[12 + i] = _mm512_shuffle_i32x4(y[4 + i], y[12 + i], 0xdd);
    }
}

/* Row i: 64 bytes of k of the operand's row i; `bytes` and `rows` of them are there. */
INLINE void load_along(__m512i x[16], const uint8_t *from, int64_t ld, int64_t rows, int64_t bytes)
{
    const __mmask64 some = bytes >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << bytes) - 1;
    UNROLL for (int i = 0; i < 16; i++) x[i] =
        i < rows ? _mm512_maskz_loadu_epi8(some, from + i * ld) : _mm512_setzero_si512();
}

static __mmask16 first_of(int64_t count)
{
    return count >= 16 ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

/* Row i: words of the operand's rows 2i and 2i + 1, which are steps of k, of 16 columns. */
INLINE void load_across(__m512i x[16], const uint8_t *from, int64_t ld, int64_t columns, int64_t steps)
{
    const __mmask16 some = first_of(columns);
    UNROLL for (int i = 0; i < 16; i++)
    {
        const __mmask16 low = 2 * i < steps ? some : 0, high = 2 * i + 1 < steps ? some : 0;
        const __m256i even = _mm256_maskz_loadu_epi16(low, from + 2 * i * ld);
        const __m256i odd = _mm256_maskz_loadu_epi16(high, from + (2 * i + 1) * ld);
        x[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
    }
}

INLINE void store_tile(uint8_t *to, const __m512i x[16])
{
    UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to + 64 * i, x[i]);
}

/* One tile of at most `count` rows (of A) or columns (of B) and `length` of k. */
INLINE void pack_tile(uint8_t *to, const uint8_t *from, int64_t ld, int64_t count, int64_t length, int64_t size,
                      const bool across, const bool turned)
{
    __m512i x[16];
    const bool whole = count >= SIDE && length * size >= OQ_AMX_BYTES;
    if (across && whole)
        load_across(x, from, ld, SIDE, 2 * SIDE);
    else if (across)
        load_across(x, from, ld, count, length);
    else if (whole)
        load_along(x, from, ld, SIDE, OQ_AMX_BYTES);
    else
        load_along(x, from, ld, count, length * size);
    if (turned) transpose(x);
    store_tile(to, x);
}

/* Tile p of k of the rows or columns from i on. */
INLINE const uint8_t *tile_at(const oq_operand *x, int64_t i, int64_t p)
{
    const int64_t k = p * oq_in_tile(x);
    return x->from + (x->across ? k * x->ld + i * x->size : i * x->ld + k * x->size);
}

/* to [count / 16][tiles of k], or pairs of 16 side by side: [count / 32][tiles of k][2]. Memory is read along rows as
 * they lie. */
#define PACK(name, across, turned, place)                                                            \
    AVX512 static void name(uint8_t *to, const oq_operand *x, int64_t tiles)                         \
    {                                                                                                \
        const int64_t each = oq_in_tile(x), sides = oq_pieces(x->count, SIDE);                       \
        for (int64_t t = 0; t < tiles * sides; t++) {                                                \
            const int64_t p = across ? t / sides : t % tiles, i = across ? t % sides : t / tiles;    \
            pack_tile(to + place * OQ_AMX_TILE, tile_at(x, i * SIDE, p), x->ld, x->count - i * SIDE, \
                      x->length - p * each, x->size, across, turned);                                \
        }                                                                                            \
    }
#define ONE_BY_ONE (i * tiles + p)
#define IN_PAIRS ((i / 2 * tiles + p) * 2 + i % 2)
PACK(pack_a_along, false, false, ONE_BY_ONE)
PACK(pack_a_across, true, true, ONE_BY_ONE)
PACK(pack_b_along, false, true, IN_PAIRS)
PACK(pack_b_across, true, false, IN_PAIRS)

typedef struct {
    __m512i high[16], low[16];
} halves;

/* x rounded to bfloat16, to nearest and ties to even: in the upper halves. */
INLINE __m512i rounded(__m512i x)
{
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(x, odd), _mm512_set1_epi32(0x7fff));
}

/* What x is more than that. */
INLINE __m512i left_of(__m512i x, __m512i upper)
{
    const __m512i high = _mm512_and_si512(upper, _mm512_set1_epi32((int)0xffff0000));
    return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(high)));
}

/* Words of the upper halves of two vectors: of x's values side by side, or of x's and y's in turn. */
INLINE __m512i side_by_side(__m512i x, __m512i y)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16))),
                              _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16)), 1);
}

INLINE __m512i in_turn(__m512i x, __m512i y)
{
    return _mm512_or_si512(_mm512_srli_epi32(x, 16), _mm512_and_si512(y, _mm512_set1_epi32((int)0xffff0000)));
}

/* Row i: 32 floats of k of the operand's row i, or its rows 2i and 2i + 1, which are steps of k, of 16 columns. */
INLINE void load_floats(halves *to, const oq_operand *x, int64_t i, int64_t p, const bool across)
{
    const float *from = (const void *)tile_at(x, i * SIDE, p);
    const int64_t ld = x->ld / (int64_t)sizeof(float), count = x->count - i * SIDE, length = x->length - p * 2 * SIDE;
    UNROLL for (int r = 0; r < 16; r++)
    {
        const float *first = across ? from + 2 * r * ld : from + r * ld, *second = across ? first + ld : first + SIDE;
        const __mmask16 one = across ? 2 * r < length ? first_of(count) : 0 : r < count ? first_of(length) : 0;
        const __mmask16 two =
            across ? 2 * r + 1 < length ? first_of(count) : 0 : r < count ? first_of(length - SIDE) : 0;
        const __m512i a = _mm512_castps_si512(_mm512_maskz_loadu_ps(one, first));
        const __m512i b = _mm512_castps_si512(_mm512_maskz_loadu_ps(two, second));
        const __m512i a_high = rounded(a), b_high = rounded(b);
        const __m512i a_low = rounded(left_of(a, a_high)), b_low = rounded(left_of(b, b_high));
        to->high[r] = across ? in_turn(a_high, b_high) : side_by_side(a_high, b_high);
        to->low[r] = across ? in_turn(a_low, b_low) : side_by_side(a_low, b_low);
    }
}

/* As above; the second and the third tile of three are high and low for A, low and high for B. */
#define PACK_FLOATS(name, across, turned, place, second, third)                                            \
    AVX512 static void name(uint8_t *to, const oq_operand *x, int64_t tiles)                               \
    {                                                                                                      \
        const int64_t sides = oq_pieces(x->count, SIDE), sources = tiles / OQ_FLOAT_TILES;                 \
        for (int64_t t = 0; t < sources * sides; t++) {                                                    \
            const int64_t source = across ? t / sides : t % sources, i = across ? t % sides : t / sources; \
            int64_t p = source * OQ_FLOAT_TILES;                                                           \
            halves h;                                                                                      \
            load_floats(&h, x, i, source, across);                                                         \
            if (turned) transpose(h.high), transpose(h.low);                                               \
            store_tile(to + place * OQ_AMX_TILE, h.high), p++;                                             \
            store_tile(to + place * OQ_AMX_TILE, h.second), p++;                                           \
            store_tile(to + place * OQ_AMX_TILE, h.third);                                                 \
        }                                                                                                  \
    }
PACK_FLOATS(pack_float_a_along, false, false, ONE_BY_ONE, high, low)
PACK_FLOATS(pack_float_a_across, true, true, ONE_BY_ONE, high, low)
PACK_FLOATS(pack_float_b_along, false, true, IN_PAIRS, low, high)
PACK_FLOATS(pack_float_b_across, true, false, IN_PAIRS, low, high)

void oq_pack_rows(const oq_operand *x, uint8_t *to)
{
    if (oq_is_float(x))
        (x->across ? pack_float_a_across : pack_float_a_along)(to, x, oq_tiles_of(x));
    else
        (x->across ? pack_a_across : pack_a_along)(to, x, oq_tiles_of(x));
}

void oq_pack_columns(const oq_operand *x, uint8_t *to)
{
    if (oq_is_float(x))
        (x->across ? pack_float_b_across : pack_float_b_along)(to, x, oq_tiles_of(x));
    else
        (x->across ? pack_b_across : pack_b_along)(to, x, oq_tiles_of(x));
}

#endif
