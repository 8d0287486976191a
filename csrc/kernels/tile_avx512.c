/* AVX-512 VNNI: vpdpbusd multiplies 4 inputs of 16 outputs with 4 activations sent to all lanes, straight from
 * the packed bits. A block of 6 rows by 4 tiles keeps 24 sums in registers. */
#include "base/cpu.h"
#include "kernels/kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <string.h>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define INLINE VNNI static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

/* Under the sanitizer the longer blocks of rows, the same code unrolled further, take a minute to compile. */
#ifdef __SANITIZE_ADDRESS__
#define FEW_ROWS
enum { ROWS = 3, TILES = OQ_PANEL_TILES };
#else
enum { ROWS = 6, TILES = OQ_PANEL_TILES };
#endif

/* Inputs 4j .. 4j + 3 of a unit. */
INLINE __m512i quad_of(const uint8_t *unit, const int j, const int bits)
{
    const __m512i low_bits = _mm512_set1_epi8((char)(bits == 4 ? 15 : 3));
    if (bits == 8) return _mm512_loadu_si512(unit);
    if (bits != 3) {
        const __m512i all = _mm512_loadu_si512(unit);
        return _mm512_and_si512(j ? _mm512_srli_epi32(all, (unsigned)(j * bits)) : all, low_bits);
    }
    const __m512i low = _mm512_loadu_si512(unit + j / 4 * 64), high = _mm512_loadu_si512(unit + 128);
    const __m512i bit2 =
        j < 2 ? _mm512_slli_epi32(high, (unsigned)(2 - j)) : _mm512_srli_epi32(high, (unsigned)(j - 2));
    /* Bits 0 and 1 of the one, bit 2 of the other. */
    const __m512i both =
        _mm512_ternarylogic_epi32(low_bits, _mm512_srli_epi32(low, (unsigned)(j % 4 * 2)), bit2, 0xca);
    return _mm512_and_si512(both, _mm512_set1_epi8(7));
}

/* sum += w x, four bytes a lane. As an instruction rather than an intrinsic: GCC copies the sums to and fro around
 * the intrinsic and spills them where 24 are kept. */
INLINE void add_products(__m512i *sum, __m512i w, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

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

/* What corrects 16 sums for the zero points: sum(w) and z_w, 16 bits each, of one segment. */
INLINE __m512i columns_of(const oq_tiles *t, const oq_run *run, int64_t lane, int64_t segment)
{
    const __m128i zeros = _mm_loadu_si128((const void *)(t->zeros + run->group * t->zero_stride + lane));
    const __m256i sums = _mm256_loadu_si256((const void *)(t->code_sums + segment * t->width + lane));
    return _mm512_or_si512(_mm512_cvtepu16_epi32(sums), _mm512_slli_epi32(_mm512_cvtepu8_epi32(zeros), 16));
}

/* sum -= z_a sum(w) + z_w sum(a - z_a): products of pairs of 16 bits. */
INLINE void correct(const oq_tiles *t, __m512i *sum, __m512i columns, int64_t row, int64_t segment)
{
    __asm__("vpdpwssd %2%{1to16%}, %1, %0"
            : "+v"(*sum)
            : "v"(columns), "m"(t->pairs[row * t->layout->segments + segment]));
}

/* Segments of the run but the last, whose turn is in flush. */
VNNI static void correct_first(const oq_tiles *t, const oq_run *run, int64_t lane, int32_t (*sums)[OQ_PANEL],
                               int rows, int tiles)
{
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < tiles; n++) {
            __m512i sum = _mm512_loadu_si512(&sums[r][n * OQ_TILE]);
            for (int64_t s = run->segment; s < run->segment + run->segments - 1; s++)
                correct(t, &sum, columns_of(t, run, lane + n * OQ_TILE, s), r, s);
            _mm512_storeu_si512(&sums[r][n * OQ_TILE], sum);
        }
}

/* t->sums += float(sums) scale. */
INLINE void flush(const oq_tiles *t, const oq_run *run, int64_t lane, __m512i sums[ROWS][TILES], const int rows,
                  const int tiles, const bool planes)
{
    const int64_t last = run->segment + run->segments - 1;
    UNROLL for (int n = 0; n < tiles; n++)
    {
        const int64_t first = lane + n * OQ_TILE;
        const __m512i columns = columns_of(t, run, first, last);
        const __m512 scale = _mm512_loadu_ps(t->scales + run->group * t->width + first);
        float *to = t->sums + first;
        UNROLL for (int r = 0; r < rows; r++) correct(t, &sums[r][n], columns, r, last);
        UNROLL for (int r = 0; r < rows; r += planes ? 3 : 1, to += OQ_PANEL)
        {
            __m512 sum = _mm512_cvtepi32_ps(sums[r][n]);
            if (planes) {
                const __m512 base = _mm512_set1_ps(256);
                sum = _mm512_add_ps(_mm512_mul_ps(sum, base), _mm512_cvtepi32_ps(sums[r + 1][n]));
                sum = _mm512_add_ps(_mm512_mul_ps(sum, base), _mm512_cvtepi32_ps(sums[r + 2][n]));
            }
            sum = _mm512_mul_ps(sum, scale);
            if (planes)
                sum = _mm512_mul_ps(sum, _mm512_set1_ps(t->x_scales[r / 3 * t->layout->groups + run->group]));
            const __m512 before = _mm512_maskz_loadu_ps(run->segment ? 0xffff : 0, to); /* nothing yet: zero */
            _mm512_storeu_ps(to, _mm512_add_ps(before, sum));
        }
    }
}

INLINE void multiply_run(const oq_tiles *t, const oq_run *run, int64_t lane, const int rows, const int tiles,
                         const int bits, const bool planes)
{
    __m512i sums[ROWS][TILES];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int n = 0; n < tiles; n++) sums[r][n] = _mm512_setzero_si512();
    }
    add_units(t, run, lane, sums, rows, tiles, bits);
    if (run->segments > 1) {
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
#define DEFINE_THREE(tiles, bits) \
    DEFINE(1, tiles, bits, false) \
    DEFINE(2, tiles, bits, false) \
    DEFINE(3, tiles, bits, false) \
    DEFINE(3, tiles, bits, true)
#define THREE(tiles, bits) \
    run_1_##tiles##_##bits##_false, run_2_##tiles##_##bits##_false, run_3_##tiles##_##bits##_false
#ifdef FEW_ROWS
#define DEFINE_ROWS(tiles, bits) DEFINE_THREE(tiles, bits)
#define NAMES(tiles, bits) {THREE(tiles, bits), run_3_##tiles##_##bits##_true}
#else
#define DEFINE_ROWS(tiles, bits)  \
    DEFINE_THREE(tiles, bits)     \
    DEFINE(4, tiles, bits, false) \
    DEFINE(5, tiles, bits, false) \
    DEFINE(6, tiles, bits, false) \
    DEFINE(6, tiles, bits, true)
#define NAMES(tiles, bits)           \
    {THREE(tiles, bits),             \
     run_4_##tiles##_##bits##_false, \
     run_5_##tiles##_##bits##_false, \
     run_6_##tiles##_##bits##_false, \
     run_3_##tiles##_##bits##_true,  \
     run_6_##tiles##_##bits##_true}
#endif

DEFINE_ROWS(1, 2)
DEFINE_ROWS(1, 3)
DEFINE_ROWS(1, 4)
DEFINE_ROWS(1, 8)
DEFINE_ROWS(4, 2)
DEFINE_ROWS(4, 3)
DEFINE_ROWS(4, 4)
DEFINE_ROWS(4, 8)

/* [one tile, four][bits][rows - 1; then 3 and 6 rows of planes] */
static const run_function functions[2][4][ROWS + ROWS / 3] = {
    {NAMES(1, 2), NAMES(1, 3), NAMES(1, 4), NAMES(1, 8)}, {NAMES(4, 2), NAMES(4, 3), NAMES(4, 4), NAMES(4, 8)}};

static void multiply_tiles(const oq_tiles *t, int rows, int64_t lane, int tiles)
{
    const int bits = t->layout->stored_bits, column = t->x_scales ? ROWS + rows / 3 - 1 : rows - 1;
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

#else

enum { ROWS = 6 };

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    (void)t, (void)rows, (void)tiles;
    return OQ_UNSUPPORTED;
}

static bool available(void) { return false; }

#endif

const oq_kernel oq_kernel_avx512_vnni = {"avx512_vnni", available, ROWS, multiply};
