/* Products of bytes on AVX2, without VNNI, over words of 32 bits:
 *
 *   narrow   4 bytes of k a word. vpmaddubsw multiplies them and adds pairs into 16 bits, where as many words are added
 *            as surely fit: for 4 bits by 4 bits 72, for 8 by 4 bits 4. 32 products an instruction, floats have 8.
 *   wide     2 of k a word, as 16 bits, for what would not fit even once. vpmaddwd adds pairs into 32 bits.    */
#include "math/igemm.h"

#include <string.h>

#include "base/cpu.h"
#include "base/scratch.h"
#include "base/size.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32)

#include "math/blocks.h"
#include "math/transpose_avx2.h"

enum {
    ROWS = 6,   /* of C in registers: 12 accumulators, two vectors of B, one of A and a product are all 16 */
    LANES = 16, /* columns of C in registers */
    DEEP = 256, /* words of k at a time */
    TALL = 192, /* rows of A at a time */
    WIDE = 512, /* columns of B at a time */
    SLACK = 2,  /* what the last store of a transposed block writes too much */
    FEWEST = 2  /* words added in 16 bits between two that are widened; of fewer, wide is the faster one */
};

typedef enum { BYTES, UNSIGNED_PAIRS, SIGNED_PAIRS } word;

typedef struct {
    int32_t a[TALL * DEEP + SLACK]; /* [slivers][words][ROWS] */
    int32_t b[WIDE * DEEP];         /* [slivers][words][LANES] */
} packed;

typedef struct {
    const oq_igemm_args *product;
    packed *packed;
    int steps; /* words added in 16 bits; 0: wide */
} job;

/* One stretch of k. */
typedef struct {
    int64_t length, words;
    int steps;
} stretch;

/* ---- packing ---------------------------------------------------------------- */

static int in_word(word kind) { return kind == BYTES ? 4 : 2; }

static word kind_of(int steps) { return steps ? BYTES : SIGNED_PAIRS; }

static stretch stretch_of(const job *j, const oq_block_place *at)
{
    return (stretch){at->depth, oq_pieces(at->depth, in_word(kind_of(j->steps))), j->steps};
}

INLINE __m256i eight_words(const uint8_t *x, const word kind)
{
    if (kind == BYTES) return oq_load_words(x);
    const __m128i bytes = _mm_loadu_si128((const void *)x);
    return kind == SIGNED_PAIRS ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes);
}

/* The first `count` bytes of x, zeros behind them. */
static int32_t one_word(const uint8_t *x, int64_t count, word kind)
{
    uint8_t bytes[4] = {0};
    int16_t pair[2];
    int32_t result;
    memcpy(bytes, x, (size_t)oq_least(count, in_word(kind)));
    for (int i = 0; i < 2; i++) pair[i] = (int16_t)(kind == SIGNED_PAIRS ? (int8_t)bytes[i] : bytes[i]);
    memcpy(&result, kind == BYTES ? (const void *)bytes : (const void *)pair, sizeof result);
    return result;
}

/* to [8 words, 8 rows], `width` apart. */
INLINE void transpose_block(int32_t *to, const int width, const uint8_t *x, int64_t ld, const int rows, const word kind)
{
    __m256 in[8], out[8];
    UNROLL for (int j = 0; j < 8; j++) in[j] =
        j < rows ? _mm256_castsi256_ps(eight_words(x + j * ld, kind)) : _mm256_setzero_ps();
    oq_transpose_8x8(in, out);
    UNROLL for (int p = 0; p < 8; p++)
        oq_store_words(to + p * width, _mm256_castps_si256(out[p]));
}

INLINE void pack_kind(int32_t *to, const int width, int64_t valid, const uint8_t *x, int64_t ld, int64_t length,
                      int64_t words, const word kind)
{
    int64_t p = 0;
    if (valid >= width)
        for (; (p + 8) * in_word(kind) <= length; p += 8)
            UNROLL for (int j = 0; j < width; j += 8)
                transpose_block(to + p * width + j, width, x + j * ld + p * in_word(kind), ld, width - j, kind);
    for (; p < words; p++)
        for (int64_t j = 0; j < width; j++) {
            const int64_t begin = p * in_word(kind);
            to[p * width + j] = j < valid ? one_word(x + j * ld + begin, length - begin, kind) : 0;
        }
}

/* to [words, width] <- rows of bytes; `valid` of them are there, the others are zeros. */
#define PACK(name, width, kind)                                                                                   \
    AVX2 static void name(int32_t *to, int64_t valid, const uint8_t *x, int64_t ld, const stretch *k)             \
    {                                                                                                             \
        pack_kind(to, width, valid, x, ld, k->length, k->words, kind);                                            \
    }
typedef void pack_sliver(int32_t *to, int64_t valid, const uint8_t *x, int64_t ld, const stretch *k);
PACK(pack_rows_of_bytes, ROWS, BYTES)
PACK(pack_rows_of_pairs, ROWS, UNSIGNED_PAIRS)
PACK(pack_lanes_of_bytes, LANES, BYTES)
PACK(pack_lanes_of_pairs, LANES, SIGNED_PAIRS)

/* `count` rows of x, `width` a sliver, over a stretch of k. */
static void pack_slivers(const job *j, const oq_block_place *at, pack_sliver *pack, int64_t width, const uint8_t *x,
                         int64_t ld, int64_t count, int32_t *to)
{
    const stretch k = stretch_of(j, at);
    for (int64_t i = 0; i < count; i += width) pack(to + i * k.words, count - i, x + i * ld + at->k0, ld, &k);
}

static void pack_a(void *user, const oq_block_place *at)
{
    const job *j = user;
    const oq_igemm_args *g = j->product;
    pack_slivers(j, at, j->steps ? pack_rows_of_bytes : pack_rows_of_pairs, ROWS, g->a + at->row * g->lda, g->lda,
                 at->rows, j->packed->a);
}

static void pack_b(void *user, const oq_block_place *at)
{
    const job *j = user;
    const oq_igemm_args *g = j->product;
    pack_slivers(j, at, j->steps ? pack_lanes_of_bytes : pack_lanes_of_pairs, LANES,
                 (const uint8_t *)g->b + at->column * g->ldb, g->ldb, at->columns, j->packed->b);
}

/* ---- the tile ---------------------------------------------------------------- */

INLINE void clear(__m256i sum[ROWS][2])
{
    UNROLL for (int i = 0; i < ROWS; i++) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
}

INLINE void add_to(int32_t *tile, int64_t ld, const __m256i sum[ROWS][2], const bool widen)
{
    UNROLL for (int i = 0; i < ROWS; i++)
        UNROLL for (int half = 0; half < 2; half++)
        {
            int32_t *to = tile + i * ld + 8 * half;
            const __m256i x = widen ? _mm256_madd_epi16(sum[i][half], _mm256_set1_epi16(1)) : sum[i][half];
            oq_store_words(to, _mm256_add_epi32(oq_load_words(to), x));
        }
}

INLINE void add_words(__m256i sum[ROWS][2], const int32_t *a, const int32_t *b, int64_t words, const bool narrow)
{
    for (int64_t p = 0; p < words; p++, a += ROWS, b += LANES) {
        const __m256i low = oq_load_words(b), high = oq_load_words(b + 8);
        UNROLL for (int i = 0; i < ROWS; i++)
        {
            const __m256i x = _mm256_set1_epi32(a[i]);
            if (narrow) {
                sum[i][0] = _mm256_add_epi16(sum[i][0], _mm256_maddubs_epi16(x, low));
                sum[i][1] = _mm256_add_epi16(sum[i][1], _mm256_maddubs_epi16(x, high));
            } else {
                sum[i][0] = _mm256_add_epi32(sum[i][0], _mm256_madd_epi16(x, low));
                sum[i][1] = _mm256_add_epi32(sum[i][1], _mm256_madd_epi16(x, high));
            }
            IN_TURN(a, sum[i][0], sum[i][1]);
        }
    }
}

/* tile [ROWS, LANES] += a^T b over a stretch. */
AVX2 static void add_tile(const stretch *k, const int32_t *a, const int32_t *b, int32_t *tile, int64_t ld)
{
    __m256i sum[ROWS][2];
    if (!k->steps) {
        clear(sum);
        add_words(sum, a, b, k->words, false);
        add_to(tile, ld, (const __m256i(*)[2])sum, false);
        return;
    }
    for (int64_t p = 0; p < k->words; p += k->steps) {
        clear(sum);
        add_words(sum, a + p * ROWS, b + p * LANES, oq_least(k->steps, k->words - p), true);
        add_to(tile, ld, (const __m256i(*)[2])sum, true);
    }
}

/* The same where C ends within the tile. */
static void add_edge(const stretch *k, const int32_t *a, const int32_t *b, int32_t *c, int64_t ldc, int64_t rows,
                     int64_t columns)
{
    int32_t tile[ROWS * LANES] = {0};
    add_tile(k, a, b, tile, LANES);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) c[i * ldc + j] += tile[i * LANES + j];
}

static void run_tile(void *user, const oq_block_place *at, int64_t i, int64_t j)
{
    const job *own = user;
    const oq_igemm_args *g = own->product;
    const stretch k = stretch_of(own, at);
    const int64_t rows = oq_least(ROWS, at->rows - i), columns = oq_least(LANES, at->columns - j);
    const int32_t *a = own->packed->a + i * k.words, *b = own->packed->b + j * k.words;
    int32_t *c = g->c + (at->row + i) * g->ldc + at->column + j;
    if (rows == ROWS && columns == LANES)
        add_tile(&k, a, b, c, g->ldc);
    else
        add_edge(&k, a, b, c, g->ldc, rows, columns);
}

oq_code oq_igemm_avx2(const oq_igemm_args *g)
{
    const int fit = INT16_MAX / (2 * g->a_most * g->b_most); /* of 16 bits: sums of pairs of products */
    job j = {g, oq_scratch(sizeof(packed)), fit >= FEWEST ? fit : 0};
    const int each = in_word(kind_of(j.steps));
    const oq_blocks blocks = {.m = g->m,
                              .n = g->n,
                              .k = g->k,
                              .tall = TALL,
                              .wide = WIDE,
                              .deep = DEEP * each,
                              .unit = 8 * each,
                              .high = ROWS,
                              .lanes = LANES,
                              .pack_a = pack_a,
                              .pack_b = pack_b,
                              .tile = run_tile};
    if (!j.packed) return OQ_OUT_OF_MEMORY;
    for (int64_t i = 0; i < g->m; i++) memset(g->c + i * g->ldc, 0, (size_t)g->n * sizeof *g->c);
    oq_in_blocks(&blocks, &j);
    return OQ_OK;
}

bool oq_igemm_avx2_runs(void) { return oq_cpu_features()->avx2; }

#else

bool oq_igemm_avx2_runs(void) { return false; }

oq_code oq_igemm_avx2(const oq_igemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

#endif
