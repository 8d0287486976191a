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

/* sum += w x, four bytes a lane. As an instruction rather than an intrinsic: GCC copies the sums to and fro around
 * the intrinsic and spills them where 24 are kept. */
INLINE void add_products(__m512i *sum, __m512i w, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

/* Weights are asked for so many bytes before their turn. Left to a Granite Rapids core alone, one row reads memory a
 * sixth slower, and four to eight rows take up to twice as long. */
enum { AHEAD = 2048 };

/* sums [rows] of 16 outputs each, of products over the run's units. */
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
                int32_t four;
                memcpy(&four, a + r * t->a_stride + 4 * j, sizeof four);
                const __m512i x = _mm512_set1_epi32(four);
                UNROLL for (int n = 0; n < tiles; n++) add_products(&sums[r][n], w[n], x);
            }
        }
    }
}

/* Segments of the run but the last, whose turn is in flush. */
VNNI static void correct_first(const oq_tiles *t, const oq_run *run, int64_t lane, int32_t (*sums)[OQ_PANEL],
                               int rows, int tiles)
{
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < tiles; n++) {
            __m512i sum = _mm512_loadu_si512(&sums[r][n * OQ_TILE]);
            for (int64_t s = run->segment; s < run->segment + run->segments - 1; s++)
                correct(&sum, columns_of(t, run, lane + n * OQ_TILE, s), t->pairs + r * t->layout->segments + s);
            _mm512_storeu_si512(&sums[r][n * OQ_TILE], sum);
        }
}

/* t->sums += float(sums) scale. */
INLINE void flush(const oq_tiles *t, const oq_run *run, int64_t lane, __m512i sums[ROWS][TILES], const int rows,
                  const int tiles, const int planes)
{
    const int64_t last = run->segment + run->segments - 1;
    const __mmask16 before = sums_before(run);
    UNROLL for (int n = 0; n < tiles; n++)
    {
        const int64_t first = lane + n * OQ_TILE;
        const __m512i columns = columns_of(t, run, first, last);
        const __m512 scale = _mm512_loadu_ps(t->scales + run->group * t->width + first);
        float *to = t->sums + first;
        UNROLL for (int r = 0; r < rows; r++) correct(&sums[r][n], columns, t->pairs + r * t->layout->segments + last);
        UNROLL for (int r = 0; r < rows; r += planes, to += OQ_PANEL)
        {
            __m512i parts[3];
            UNROLL for (int p = 0; p < planes; p++) parts[p] = sums[r + p][n];
            add_scaled(before, to, join(parts, planes), scale,
                       planes > 1 ? t->x_scales + r / planes * t->layout->segments + last : NULL);
        }
    }
}

INLINE void multiply_run(const oq_tiles *t, const oq_run *run, int64_t lane, const int rows, const int tiles,
                         const int bits, const int planes)
{
    __m512i sums[ROWS][TILES];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int n = 0; n < tiles; n++) sums[r][n] = _mm512_setzero_si512();
    }
    add_units(t, run, lane, sums, rows, tiles, bits);
    if (planes == 1 && run->segments > 1) { /* planes have runs of one */
        int32_t block[ROWS][OQ_PANEL];
        UNROLL for (int r = 0; r < rows; r++)
        {
            UNROLL for (int n = 0; n < tiles; n++) _mm512_storeu_si512(&block[r][n * OQ_TILE], sums[r][n]);
        }
        correct_first(t, run, lane, block, rows, tiles);
        UNROLL for (int r = 0; r < rows; r++)
        {
            UNROLL for (int n = 0; n < tiles; n++) sums[r][n] = _mm512_loadu_si512(&block[r][n * OQ_TILE]);
        }
    }
    flush(t, run, lane, sums, rows, tiles, planes);
}

typedef void (*run_function)(const oq_tiles *t, const oq_run *run, int64_t lane);

#define DEFINE(rows, tiles, bits, planes)                                                                         \
    VNNI static void run_##rows##_##tiles##_##bits##_##planes(const oq_tiles *t, const oq_run *run, int64_t lane) \
    {                                                                                                             \
        multiply_run(t, run, lane, rows, tiles, bits, planes);                                                    \
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

static void multiply_tiles(const oq_tiles *t, int rows, int64_t lane, int tiles)
{
    const int bits = t->layout->stored_bits, column = first_of[t->planes] + rows / t->planes - 1;
    const run_function multiply_one = functions[tiles == TILES][bits == 8 ? 3 : bits - 2][column];
    oq_run run = {0};
    while (oq_next_run(t->layout, &run)) multiply_one(t, &run, lane);
}

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    if (tiles == TILES)
        multiply_tiles(t, rows, 0, TILES);
    else
        for (int tile = 0; tile < tiles; tile++) multiply_tiles(t, rows, tile * OQ_TILE, 1);
    return OQ_OK;
}

static bool available(void) { return oq_cpu_features()->avx512_vnni; }

const oq_kernel oq_kernel_avx512_vnni = {"avx512_vnni", available, ROWS, 1, multiply};

#else

const oq_kernel oq_kernel_avx512_vnni = OQ_ABSENT_KERNEL("avx512_vnni");

#endif
