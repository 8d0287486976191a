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

enum { ROWS = 6, TILES = OQ_PANEL_TILES };

typedef struct {
    _Alignas(64) int32_t of[ROWS][OQ_PANEL];
} block;

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

/* out [rows, 16 tiles] = plain sums of products over some units of inputs. In a function of its own, with nothing
 * else to keep in registers: 24 sums, 4 weights, 1 activation. */
INLINE void add_units(const oq_tiles *t, const uint8_t *codes, const int8_t *a, int64_t units, block *out,
                      const int rows, const int tiles, const int bits)
{
    const int quads = bits == 8 ? 1 : bits == 4 ? 2 : bits == 2 ? 4 : 8, bytes = bits == 3 ? 192 : 64;
    const int64_t stride = t->width / OQ_TILE * bytes;
    __m512i sums[ROWS][TILES], w[TILES];
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int n = 0; n < tiles; n++) sums[r][n] = _mm512_setzero_si512();
    }
    for (int64_t u = 0; u < units; u++, codes += stride, a += 4 * quads) {
        UNROLL for (int j = 0; j < quads; j++)
        {
            UNROLL for (int n = 0; n < tiles; n++) w[n] = quad_of(codes + n * bytes, j, bits);
            UNROLL for (int r = 0; r < rows; r++)
            {
                int32_t four;
                memcpy(&four, a + r * t->a_stride + 4 * j, sizeof four);
                const __m512i x = _mm512_set1_epi32(four);
                UNROLL for (int n = 0; n < tiles; n++) sums[r][n] = _mm512_dpbusd_epi32(sums[r][n], w[n], x);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int n = 0; n < tiles; n++) _mm512_storeu_si512(&out->of[r][n * OQ_TILE], sums[r][n]);
    }
}

typedef void (*add_function)(const oq_tiles *t, const uint8_t *codes, const int8_t *a, int64_t units, block *out);

#define DEFINE(rows, tiles, bits)                                                                            \
    VNNI static void add_##rows##_##tiles##_##bits(const oq_tiles *t, const uint8_t *codes, const int8_t *a, \
                                                   int64_t units, block *out)                                \
    {                                                                                                        \
        add_units(t, codes, a, units, out, rows, tiles, bits);                                               \
    }
#define DEFINE_ROWS(tiles, bits) \
    DEFINE(1, tiles, bits)       \
    DEFINE(2, tiles, bits)       \
    DEFINE(3, tiles, bits)       \
    DEFINE(4, tiles, bits)       \
    DEFINE(5, tiles, bits)       \
    DEFINE(6, tiles, bits)
#define NAMES(tiles, bits)                                                   \
    {add_1_##tiles##_##bits, add_2_##tiles##_##bits, add_3_##tiles##_##bits, \
     add_4_##tiles##_##bits, add_5_##tiles##_##bits, add_6_##tiles##_##bits}

DEFINE_ROWS(1, 2)
DEFINE_ROWS(1, 3)
DEFINE_ROWS(1, 4)
DEFINE_ROWS(1, 8)
DEFINE_ROWS(4, 2)
DEFINE_ROWS(4, 3)
DEFINE_ROWS(4, 4)
DEFINE_ROWS(4, 8)

/* [one tile, four][bits][rows - 1] */
static const add_function functions[2][4][ROWS] = {{NAMES(1, 2), NAMES(1, 3), NAMES(1, 4), NAMES(1, 8)},
                                                   {NAMES(4, 2), NAMES(4, 3), NAMES(4, 4), NAMES(4, 8)}};

/* ---- what is done once a group --------------------------------------------- */

/* Where the multiplication stands: a run of segments of one group, some tiles from output `lane` of the panel. */
typedef struct {
    int64_t lane, group, segment, segments;
} run;

/* total [rows] of 16 outputs: sums - z_a sum(w) - z_w sum(a - z_a), in pairs of 16 bits, one instruction each. */
INLINE void correct(const oq_tiles *t, const run *at, __m512i total[ROWS], const int rows)
{
    const __m512i zero =
        t->zeros
            ? _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(t->zeros + at->group * t->width + at->lane)))
            : _mm512_set1_epi32(t->zero);
    const int64_t end = at->segment + at->segments;
    for (int64_t s = at->segment; s < end; s++) {
        const __m512i codes =
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(t->code_sums + s * t->width + at->lane)));
        const __m512i columns = _mm512_or_si512(codes, _mm512_slli_epi32(zero, 16));
        UNROLL for (int r = 0; r < rows; r++)
        {
            const __m512i pair = _mm512_set1_epi32(t->pairs[r * t->layout->segments + s]);
            total[r] = _mm512_dpwssd_epi32(total[r], columns, pair);
        }
    }
}

/* t->sums += float(total) scale, for 16 outputs. */
INLINE void flush(const oq_tiles *t, const run *at, const __m512i total[ROWS], const int rows, const bool planes)
{
    const __m512 base = _mm512_set1_ps(256);
    const __m512 scale = _mm512_loadu_ps(t->scales + at->group * t->width + at->lane);
    float *to = t->sums + at->lane;
    UNROLL for (int r = 0; r < rows; r += planes ? 3 : 1, to += OQ_PANEL)
    {
        __m512 sum = _mm512_cvtepi32_ps(total[r]);
        if (planes) {
            sum = _mm512_add_ps(_mm512_mul_ps(sum, base), _mm512_cvtepi32_ps(total[r + 1]));
            sum = _mm512_add_ps(_mm512_mul_ps(sum, base), _mm512_cvtepi32_ps(total[r + 2]));
            sum = _mm512_mul_ps(sum, _mm512_set1_ps(t->x_scales[r / 3 * t->layout->groups + at->group]));
        }
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_mul_ps(sum, scale)));
    }
}

INLINE void finish_tiles(const oq_tiles *t, run at, const block *sums, int tiles, const int rows,
                         const bool planes)
{
    for (int n = 0; n < tiles; n++, at.lane += OQ_TILE) {
        __m512i total[ROWS];
        UNROLL for (int r = 0; r < rows; r++) total[r] = _mm512_loadu_si512(&sums->of[r][n * OQ_TILE]);
        correct(t, &at, total, rows);
        flush(t, &at, total, rows, planes);
    }
}

typedef void (*finish_function)(const oq_tiles *t, run at, const block *sums, int tiles);

#define DEFINE_FINISH(rows, planes)                                                                    \
    VNNI static void finish_##rows##_##planes(const oq_tiles *t, run at, const block *sums, int tiles) \
    {                                                                                                  \
        finish_tiles(t, at, sums, tiles, rows, planes);                                                \
    }
DEFINE_FINISH(1, false)
DEFINE_FINISH(2, false)
DEFINE_FINISH(3, false)
DEFINE_FINISH(4, false)
DEFINE_FINISH(5, false)
DEFINE_FINISH(6, false)
DEFINE_FINISH(3, true)
DEFINE_FINISH(6, true)

/* [rows - 1], then 3 and 6 rows of planes */
static const finish_function finishes[ROWS + 2] = {finish_1_false, finish_2_false, finish_3_false, finish_4_false,
                                                   finish_5_false, finish_6_false, finish_3_true,  finish_6_true};

static void multiply_tiles(const oq_tiles *t, int rows, int64_t lane, int tiles)
{
    const oq_layout *l = t->layout;
    const int bits = l->stored_bits;
    const add_function add = functions[tiles == TILES][bits == 8 ? 3 : bits - 2][rows - 1];
    const finish_function finish = finishes[t->x_scales ? ROWS + rows / 3 - 1 : rows - 1];
    const uint8_t *codes = t->codes + lane / OQ_TILE * l->unit_bytes;
    const int8_t *a = t->a;
    run at = {.lane = lane};
    block sums;
    for (; at.group < l->groups; at.group++)
        for (int64_t done = 0, length; done < oq_group_length(l, at.group); done += length) {
            length = oq_least(OQ_RUN, oq_group_length(l, at.group) - done);
            const int64_t units = oq_segment_units(l, length);
            add(t, codes, a, units, &sums);
            at.segments = oq_pieces(length, OQ_SEGMENT);
            finish(t, at, &sums, tiles);
            at.segment += at.segments;
            codes += units * t->width / OQ_TILE * l->unit_bytes;
            a += units * l->unit;
        }
}

static void multiply(const oq_tiles *t, int rows, int tiles)
{
    memset(t->sums, 0, (size_t)(t->x_scales ? rows / 3 : rows) * OQ_PANEL * sizeof(float));
    if (tiles == TILES)
        multiply_tiles(t, rows, 0, TILES);
    else
        for (int tile = 0; tile < tiles; tile++) multiply_tiles(t, rows, tile * OQ_TILE, 1);
}

static bool available(void) { return oq_cpu_features()->avx512_vnni; }

#else

static void multiply(const oq_tiles *t, int rows, int tiles) { (void)t, (void)rows, (void)tiles; }

static bool available(void) { return false; }

enum { ROWS = 6 };

#endif

const oq_kernel oq_kernel_avx512_vnni = {"avx512_vnni", available, ROWS, multiply};
