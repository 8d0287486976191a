/* Products of bfloat16, of bytes and of floats by AMX's tiles (base/amx.h). A word is 2 of bfloat16 or 4 bytes along k.
 *
 * Of both operands a stretch of k is packed into tiles: an operand whose rows run along k has its words side by
 * side, any other has the two parts of a word one below the other, and is interleaved. A's tiles have words in a row,
 * B's have them in a column: half of the four cases are transposed. C is made 32 by 32 in four tiles.
 *
 * A float is taken as two of bfloat16, x = high + low to 2^-17, and three of their four products are added: a tile of A
 * is packed as high, high, low, one of B as high, low, high. */
#include "math/gemm_amx.h"

#include <string.h>

#include "base/cpu.h"
#include "base/scratch.h"
#include "base/size.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include "base/amx.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define INLINE AVX512 static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    SIDE = OQ_AMX_ROWS,
    BLOCK = 2 * SIDE, /* rows and columns of C in tiles */
    DEEP = 18,        /* tiles of k at a time: A's 32 rows of them stay in the level 1 cache, while B streams */
    WIDE = 512,       /* columns of B and */
    TALL = 512        /* rows of A at a time: half a MiB each, in the level 2 cache */
};

typedef enum { BF16, BYTES } word;

/* Some rows of A or columns of B, and a stretch of k. A row in memory runs along k, or across it. */
typedef struct {
    const uint8_t *from;
    int64_t ld, count, length, size; /* in bytes, rows or columns, values of k, bytes of a value */
    bool across;
} part;

enum { FLOATS_COPIES = 3 }; /* tiles packed of a tile of floats */

/* What both products are: C [m, n] (+)= A B, words of 32 bits. */
typedef struct {
    word kind;
    bool accumulate;
    int64_t m, n, k, ldc;
    part a, b;
    int32_t *c;
} job;

typedef struct {
    _Alignas(64) uint8_t a[TALL * DEEP * OQ_AMX_BYTES], b[WIDE * DEEP * OQ_AMX_BYTES];
    int32_t c[BLOCK * BLOCK];
} packed;

static int64_t pieces(int64_t a, int64_t b) { return (a + b - 1) / b; }
static bool is_float(const part *x) { return x->size == sizeof(float); }
/* Values of k in a tile, and tiles that are packed of `length` of them. */
static int64_t in_tile(const part *x) { return is_float(x) ? OQ_AMX_BYTES / 2 : OQ_AMX_BYTES / x->size; }
static int64_t tiles_of(const part *x) { return pieces(x->length, in_tile(x)) * (is_float(x) ? FLOATS_COPIES : 1); }

/* ---- packing ---------------------------------------------------------------- */

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

/* Row i: words of the operand's rows 2i and 2i + 1, which are steps of k, of 16 columns. */
INLINE void load_across(__m512i x[16], const uint8_t *from, int64_t ld, int64_t columns, int64_t steps)
{
    const __mmask16 some = columns >= 16 ? 0xffff : (__mmask16)((1u << columns) - 1);
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

/* From a row of A or a column of B on. */
static part part_of(part whole, int64_t place, int64_t count, int64_t first, int64_t length)
{
    const int64_t along = whole.across ? place : first, below = whole.across ? first : place;
    whole.from += below * whole.ld + along * whole.size;
    whole.count = count;
    whole.length = length;
    return whole;
}

/* Tile p of k of the rows or columns from i on. */
INLINE const uint8_t *tile_at(const part *x, int64_t i, int64_t p)
{
    const int64_t k = p * in_tile(x);
    return x->from + (x->across ? k * x->ld + i * x->size : i * x->ld + k * x->size);
}

/* to [count / 16][tiles of k], or pairs of 16 side by side: [count / 32][tiles of k][2]. Memory is read along rows as
 * they lie. */
#define PACK(name, across, turned, place)                                                            \
    AVX512 static void name(uint8_t *to, const part *x, int64_t tiles)                               \
    {                                                                                                \
        const int64_t each = in_tile(x), sides = pieces(x->count, SIDE);                 \
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

/* The upper halves of floats, and those of what is left of them, rounded. */
typedef struct {
    __m512i high[16], low[16];
} halves;

INLINE __m512i low_of(__m512i x)
{
    const __m512i upper = _mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000));
    const __m512i left = _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(upper)));
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(left, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(left, even), _mm512_set1_epi32(0x7fff));
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

static __mmask16 first_of(int64_t count)
{
    return count >= 16 ? 0xffff : count > 0 ? (__mmask16)((1u << count) - 1) : 0;
}

/* Row i: 32 floats of k of the operand's row i, or its rows 2i and 2i + 1, which are steps of k, of 16 columns. */
INLINE void load_floats(halves *to, const part *x, int64_t i, int64_t p, const bool across)
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
        to->high[r] = across ? in_turn(a, b) : side_by_side(a, b);
        to->low[r] = across ? in_turn(low_of(a), low_of(b)) : side_by_side(low_of(a), low_of(b));
    }
}

/* As above; the second and the third tile of three are high and low for A, low and high for B. */
#define PACK_FLOATS(name, across, turned, place, second, third)                                            \
    AVX512 static void name(uint8_t *to, const part *x, int64_t tiles)                                     \
    {                                                                                                      \
        const int64_t sides = pieces(x->count, SIDE), sources = tiles / FLOATS_COPIES;                     \
        for (int64_t t = 0; t < sources * sides; t++) {                                                    \
            const int64_t source = across ? t / sides : t % sources, i = across ? t % sides : t / sources; \
            int64_t p = source * FLOATS_COPIES;                                                            \
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

static void pack_a(uint8_t *to, const part *x)
{
    if (is_float(x))
        (x->across ? pack_float_a_across : pack_float_a_along)(to, x, tiles_of(x));
    else
        (x->across ? pack_a_across : pack_a_along)(to, x, tiles_of(x));
}

static void pack_b(uint8_t *to, const part *x)
{
    if (is_float(x))
        (x->across ? pack_float_b_across : pack_float_b_along)(to, x, tiles_of(x));
    else
        (x->across ? pack_b_across : pack_b_along)(to, x, tiles_of(x));
}

/* ---- 32 by 32 ------------------------------------------------------------------ */

#define MULTIPLY(instruction)                                 \
    for (int64_t p = 0; p < tiles; p++) {                     \
        OQ_TILE_LOAD(4, a + p * OQ_AMX_TILE, 64);             \
        OQ_TILE_STREAM(6, b + 2 * p * OQ_AMX_TILE, 64);       \
        OQ_TILE_STREAM(7, b + (2 * p + 1) * OQ_AMX_TILE, 64); \
        OQ_TILE_LOAD(5, a + (tiles + p) * OQ_AMX_TILE, 64);   \
        instruction(0, 4, 6);                                 \
        instruction(1, 4, 7);                                 \
        instruction(2, 5, 6);                                 \
        instruction(3, 5, 7);                                 \
    }

/* C (+)= A B of some tiles of k, C [32, 32]. */
static void multiply(word kind, const uint8_t *a, const uint8_t *b, int64_t tiles, bool add, int32_t *c, int64_t ldc)
{
    const int64_t stride = ldc * 4;
    int32_t *below = c + SIDE * ldc;
    if (add) {
        OQ_TILE_LOAD(0, c, stride);
        OQ_TILE_LOAD(1, c + SIDE, stride);
        OQ_TILE_LOAD(2, below, stride);
        OQ_TILE_LOAD(3, below + SIDE, stride);
    } else {
        OQ_TILE_ZERO(0);
        OQ_TILE_ZERO(1);
        OQ_TILE_ZERO(2);
        OQ_TILE_ZERO(3);
    }
    if (kind == BF16)
        MULTIPLY(OQ_TILE_BF16)
    else
        MULTIPLY(OQ_TILE_U8S8)
    OQ_TILE_STORE(0, c, stride);
    OQ_TILE_STORE(1, c + SIDE, stride);
    OQ_TILE_STORE(2, below, stride);
    OQ_TILE_STORE(3, below + SIDE, stride);
}

static void copy_block(int32_t *to, int64_t to_ld, const int32_t *from, int64_t from_ld, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_ld, from + i * from_ld, sizeof *to * (size_t)columns);
}

/* The block of C at a row and a column; where it reaches over the edge, by way of a whole one. */
static void make_block(const job *j, packed *p, const uint8_t *a, const uint8_t *b, int64_t tiles, bool add,
                       int64_t row, int64_t column)
{
    const int64_t rows = oq_least(BLOCK, j->m - row), columns = oq_least(BLOCK, j->n - column);
    int32_t *c = j->c + row * j->ldc + column;
    if (rows == BLOCK && columns == BLOCK) {
        multiply(j->kind, a, b, tiles, add, c, j->ldc);
        return;
    }
    if (add) copy_block(p->c, BLOCK, c, j->ldc, rows, columns);
    multiply(j->kind, a, b, tiles, add, p->c, BLOCK);
    copy_block(c, j->ldc, p->c, BLOCK, rows, columns);
}

/* ---- all of it ------------------------------------------------------------------- */

/* Some rows and columns of C, a stretch of k; A is packed. Row by row, as C is written. */
static void add_columns(const job *j, packed *p, int64_t row, int64_t column, int64_t first, int64_t length)
{
    const int64_t rows = oq_least(TALL, j->m - row), columns = oq_least(WIDE, j->n - column);
    const part b = part_of(j->b, column, columns, first, length);
    const int64_t tiles = tiles_of(&b);
    pack_b(p->b, &b);
    for (int64_t r = 0; r < rows; r += BLOCK)
        for (int64_t c = 0; c < columns; c += BLOCK)
            make_block(j, p, p->a + r * tiles * OQ_AMX_BYTES, p->b + c * tiles * OQ_AMX_BYTES, tiles,
                       first > 0 || j->accumulate, row + r, column + c);
}

static void add_rows(const job *j, packed *p, int64_t row, int64_t first, int64_t length)
{
    const part a = part_of(j->a, row, oq_least(TALL, j->m - row), first, length);
    pack_a(p->a, &a);
    for (int64_t column = 0; column < j->n; column += WIDE) add_columns(j, p, row, column, first, length);
}

static oq_code run(const job *j)
{
    packed *p = oq_scratch(sizeof *p);
    const int64_t each = in_tile(&j->a), tiles = pieces(j->k, each);
    const int64_t most = is_float(&j->a) ? DEEP / FLOATS_COPIES : DEEP;
    const int64_t deep = tiles ? pieces(tiles, pieces(tiles, most)) * each : 1; /* stretches are alike */
    if (!p) return OQ_OUT_OF_MEMORY;
    oq_amx_begin();
    for (int64_t row = 0; row < j->m; row += TALL)
        for (int64_t first = 0; first == 0 || first < j->k; first += deep)
            add_rows(j, p, row, first, oq_least(deep, j->k - first));
    oq_amx_end();
    return OQ_OK;
}

oq_code oq_bf16_amx(const oq_bf16_gemm_args *g)
{
    return run(&(job){.kind = BF16,
                      .accumulate = g->accumulate,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .ldc = g->ldc,
                      .a = {(const uint8_t *)g->a, 2 * g->lda, g->m, g->k, 2, g->transpose_a},
                      .b = {(const uint8_t *)g->b, 2 * g->ldb, g->n, g->k, 2, !g->transpose_b},
                      .c = (int32_t *)g->c});
}

oq_code oq_igemm_amx(const oq_igemm_args *g)
{
    return run(&(job){.kind = BYTES,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .ldc = g->ldc,
                      .a = {g->a, g->lda, g->m, g->k, 1, false},
                      .b = {(const uint8_t *)g->b, g->ldb, g->n, g->k, 1, false},
                      .c = g->c});
}

oq_code oq_sgemm_amx(const oq_gemm_args *g)
{
    return run(&(job){.kind = BF16,
                      .accumulate = g->beta != 0,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .ldc = g->ldc,
                      .a = {(const uint8_t *)g->a, 4 * g->lda, g->m, g->k, 4, g->transpose_a},
                      .b = {(const uint8_t *)g->b, 4 * g->ldb, g->n, g->k, 4, !g->transpose_b},
                      .c = (int32_t *)g->c});
}

bool oq_bf16_amx_runs(void)
{
#ifdef OQ_DOUBLE
    return false;
#else
    return oq_cpu_features()->amx_bf16;
#endif
}

bool oq_igemm_amx_runs(void) { return oq_cpu_features()->amx_int8; }

#else

bool oq_bf16_amx_runs(void) { return false; }
bool oq_igemm_amx_runs(void) { return false; }

oq_code oq_bf16_amx(const oq_bf16_gemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

oq_code oq_igemm_amx(const oq_igemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

oq_code oq_sgemm_amx(const oq_gemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

#endif

bool oq_sgemm_amx_can(const oq_gemm_args *g)
{
    return oq_bf16_amx_runs() && g->alpha == 1 && (g->beta == 0 || g->beta == 1) && g->m >= 16 && g->n >= 16;
}
