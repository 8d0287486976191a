/* AVX-512 VNNI: vpdpbusd multiplies 4 inputs of 16 outputs with 4 activations sent to all lanes, straight from
 * the packed bits. A block of 6 rows by 4 tiles keeps 24 sums in registers. */
#include "base/cpu.h"
#include "kernels/kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <string.h>

#include "kernels/avx512.h"

/* Under the sanitizer the longer blocks of rows, the same code unrolled further, take a minute to compile. */
#ifdef __SANITIZE_ADDRESS__
#define FEW_ROWS
enum { ROWS = 3, TILES = OQ_PANEL_TILES };
#else
enum { ROWS = 6, TILES = OQ_PANEL_TILES };
#endif
enum { MOST_ROWS = 48 }; /* whose sums of a panel stay in the level 1 cache beside a run's codes */

/* sum += w x, four bytes a lane. As an instruction rather than an intrinsic: GCC copies the sums to and fro around
 * the intrinsic and spills them where 24 are kept. */
INLINE void add_products(__m512i *sum, __m512i w, const int32_t *four)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(w), "m"(*four));
}

/* Weights are asked for so many bytes before their turn. Left to a Granite Rapids core alone, one row reads memory a
 * sixth slower, and four to eight rows take up to twice as long. */
enum { AHEAD = 2048 };

/* sums [rows] of 16 outputs each += products over the run's units. */
INLINE void add_units(const oq_tiles *t, const oq_run *run, int64_t lane, __m512i sums[ROWS][TILES],
                      const int rows, const int tiles, const int bits)
{
    const int quads = bits == 8 ? 1 : bits == 4 ? 2 : bits == 2 ? 4 : 8, bytes = bits == 3 ? 192 : 64;
    const int64_t stride = t->width / OQ_TILE * bytes;
    const uint8_t *codes = t->codes + run->unit * stride + lane / OQ_TILE * bytes;
    const int8_t *a = t->a + run->unit * 4 * quads;
    __m512i w[TILES];
    for (int64_t u = 0; u < run->units; u++, codes += stride, a += 4 * quads) {
        UNROLL for (int line = 0; line < tiles * bytes / 64; line++)
            _mm_prefetch((const char *)(codes + AHEAD + 64 * line), _MM_HINT_T0);
        UNROLL for (int j = 0; j < quads; j++)
        {
            UNROLL for (int n = 0; n < tiles; n++) w[n] = quad_of(codes + n * bytes, j, bits);
            UNROLL for (int r = 0; r < rows; r++)
            {
                const int32_t *four = (const void *)(a + r * t->a_stride + 4 * j);
                UNROLL for (int n = 0; n < tiles; n++) add_products(&sums[r][n], w[n], four);
            }
        }
    }
}

/* What corrects a run for the zero points, - z_a sum(w) - z_w sum(a - z_a), is what its products are added to: of a
 * run of one segment in pairs of 16 bits, of several in 32. */
INLINE void correct_short(const oq_tiles *t, const oq_run *run, int64_t lane, __m512i sums[ROWS][TILES],
                          const int rows, const int tiles)
{
    __m512i columns[TILES];
    UNROLL for (int n = 0; n < tiles; n++) columns[n] = columns_of(t, run, lane + n * OQ_TILE, run->segment);
    UNROLL for (int r = 0; r < rows; r++)
    {
        const __m512i pair = _mm512_set1_epi32(t->pairs[r * t->layout->segments + run->segment]);
        UNROLL for (int n = 0; n < tiles; n++) sums[r][n] = _mm512_madd_epi16(columns[n], pair);
    }
}

INLINE void correct_long(const oq_tiles *t, const oq_run *run, const int32_t *code_sums, int64_t lane,
                         __m512i sums[ROWS][TILES], const int rows, const int tiles)
{
    const uint8_t *zeros = t->zeros + run->group * t->zero_stride + lane;
    UNROLL for (int r = 0; r < rows; r++)
    {
        const int32_t *pairs = t->pairs + r * t->layout->segments;
        const __m512i minus_z = _mm512_set1_epi32((int16_t)(pairs[run->segment] & 0xffff));
        const __m512i minus_sum = _mm512_set1_epi32(row_total(run, pairs));
        UNROLL for (int n = 0; n < tiles; n++)
        {
            const __m512i of_column = _mm512_loadu_si512(code_sums + lane + n * OQ_TILE);
            const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(zeros + n * OQ_TILE)));
            sums[r][n] =
                _mm512_add_epi32(_mm512_mullo_epi32(minus_z, of_column), _mm512_mullo_epi32(minus_sum, zero));
        }
    }
}

/* t->sums += float(sums) scale: zeros before the first run. */
INLINE void flush(const oq_tiles *t, const oq_run *run, int64_t lane, __m512i sums[ROWS][TILES], const int rows,
                  const int tiles, const int planes)
{
    UNROLL for (int n = 0; n < tiles; n++)
    {
        const int64_t first = lane + n * OQ_TILE;
        const __m512 scale = _mm512_loadu_ps(t->scales + run->group * t->width + first);
        float *to = t->sums + first;
        UNROLL for (int r = 0; r < rows; r += planes, to += OQ_PANEL)
        {
            __m512i parts[3];
            UNROLL for (int p = 0; p < planes; p++) parts[p] = sums[r + p][n];
            add_scaled(0xffff, to, join(parts, planes), scale,
                       planes > 1 ? t->x_scales + r / planes * t->layout->segments + run->segment : NULL);
        }
    }
}

/* code_sums of a run of several segments. */
INLINE void multiply_run(const oq_tiles *t, const oq_run *run, const int32_t *code_sums, int64_t lane, const int rows,
                         const int tiles, const int bits, const int planes)
{
    __m512i sums[ROWS][TILES];
    if (planes == 1 && run->segments > 1) /* planes have runs of one */
        correct_long(t, run, code_sums, lane, sums, rows, tiles);
    else
        correct_short(t, run, lane, sums, rows, tiles);
    add_units(t, run, lane, sums, rows, tiles, bits);
    flush(t, run, lane, sums, rows, tiles, planes);
}

typedef void (*run_function)(const oq_tiles *t, const oq_run *run, const int32_t *code_sums, int64_t lane);

#define DEFINE(rows, tiles, bits, planes)                                                                          \
    VNNI static void run_##rows##_##tiles##_##bits##_##planes(const oq_tiles *t, const oq_run *run,                \
                                                              const int32_t *code_sums, int64_t lane)              \
    {                                                                                                              \
        multiply_run(t, run, code_sums, lane, rows, tiles, bits, planes);                                          \
    }
#define DEFINE_FEW(tiles, bits) \
    DEFINE(1, tiles, bits, 1)   \
    DEFINE(2, tiles, bits, 1)   \
    DEFINE(3, tiles, bits, 1)   \
    DEFINE(2, tiles, bits, 2)   \
    DEFINE(3, tiles, bits, 3)
#define FEW(tiles, bits) run_1_##tiles##_##bits##_1, run_2_##tiles##_##bits##_1, run_3_##tiles##_##bits##_1
#ifdef FEW_ROWS
#define DEFINE_ROWS(tiles, bits) DEFINE_FEW(tiles, bits)
#define NAMES(tiles, bits) {FEW(tiles, bits), run_2_##tiles##_##bits##_2, run_3_##tiles##_##bits##_3}
#else
#define DEFINE_ROWS(tiles, bits) \
    DEFINE_FEW(tiles, bits)      \
    DEFINE(4, tiles, bits, 1)    \
    DEFINE(5, tiles, bits, 1)    \
    DEFINE(6, tiles, bits, 1)    \
    DEFINE(4, tiles, bits, 2)    \
    DEFINE(6, tiles, bits, 2)    \
    DEFINE(6, tiles, bits, 3)
#define NAMES(tiles, bits)       \
    {FEW(tiles, bits),           \
     run_4_##tiles##_##bits##_1, \
     run_5_##tiles##_##bits##_1, \
     run_6_##tiles##_##bits##_1, \
     run_2_##tiles##_##bits##_2, \
     run_4_##tiles##_##bits##_2, \
     run_6_##tiles##_##bits##_2, \
     run_3_##tiles##_##bits##_3, \
     run_6_##tiles##_##bits##_3}
#endif

DEFINE_ROWS(1, 2)
DEFINE_ROWS(1, 3)
DEFINE_ROWS(1, 4)
DEFINE_ROWS(1, 8)
DEFINE_ROWS(4, 2)
DEFINE_ROWS(4, 3)
DEFINE_ROWS(4, 4)
DEFINE_ROWS(4, 8)

/* Where a table's functions for so many planes begin, which have rows planes, 2 planes, ... to ROWS. */
static const int first_of[] = {[1] = 0, [2] = ROWS, [3] = ROWS + ROWS / 2};

/* [one tile, four][bits][first_of[planes] + rows / planes - 1] */
static const run_function functions[2][4][ROWS + ROWS / 2 + ROWS / 3] = {
    {NAMES(1, 2), NAMES(1, 3), NAMES(1, 4), NAMES(1, 8)}, {NAMES(4, 2), NAMES(4, 3), NAMES(4, 4), NAMES(4, 8)}};

static run_function function_for(const oq_tiles *t, int rows, int tiles)
{
    const int bits = t->layout->stored_bits;
    return functions[tiles == TILES][bits == 8 ? 3 : bits - 2][first_of[t->planes] + rows / t->planes - 1];
}

/* As many rows as registers hold the sums of. */
typedef struct {
    oq_tiles t;
    run_function multiply;
} block;

/* 8 rows are 4 and 4, not 6 and 2; the rows of a token's planes stay together. */
static int cut(const oq_tiles *t, int rows, int tiles, block blocks[MOST_ROWS])
{
    const int tokens = rows / t->planes, most = ROWS / t->planes;
    const int each = (int)oq_pieces(tokens, oq_pieces(tokens, most));
    int count = 0;
    for (int token = 0; token < tokens; token += each) {
        block *b = &blocks[count++];
        b->t = *t;
        b->t.a += token * t->planes * t->a_stride;
        b->t.pairs += token * t->planes * t->layout->segments;
        b->t.sums += token * OQ_PANEL;
        if (t->x_scales) b->t.x_scales += token * t->layout->segments;
        b->multiply = function_for(t, (int)oq_least(each, tokens - token) * t->planes, tiles);
    }
    return count;
}

static void multiply_block(const block *b, const oq_run *run, const int32_t *code_sums, int tiles)
{
    const int some = tiles == TILES ? TILES : 1;
    for (int tile = 0; tile < tiles; tile += some) b->multiply(&b->t, run, code_sums, tile * OQ_TILE);
}

/* What the segments of a long run add up to is found once for all blocks. Otherwise a block goes through all runs:
 * in the other order, memory waits at the end of every run (8 rows took 1.3 times as long on a Zen 4). */
static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    int32_t code_sums[OQ_PANEL];
    block blocks[MOST_ROWS];
    const block *end = blocks + cut(t, rows, tiles, blocks);
    memset(t->sums, 0, (size_t)(rows / t->planes) * OQ_PANEL * sizeof(float));
    if (t->layout->group > OQ_SEGMENT && t->planes == 1)
        for (oq_run run = {0}; oq_next_run(t->layout, &run);) {
            add_segments(t, &run, code_sums);
            for (const block *b = blocks; b < end; b++) multiply_block(b, &run, code_sums, tiles);
        }
    else
        for (const block *b = blocks; b < end; b++)
            for (oq_run run = {0}; oq_next_run(t->layout, &run);) multiply_block(b, &run, NULL, tiles);
    return OQ_OK;
}

static bool available(void) { return oq_cpu_features()->avx512_vnni; }

const oq_kernel oq_kernel_avx512_vnni = {"avx512_vnni", available, MOST_ROWS, 1, multiply};

#else

const oq_kernel oq_kernel_avx512_vnni = OQ_ABSENT_KERNEL("avx512_vnni");

#endif
