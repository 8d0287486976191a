/* AVX2: vpmaddubsw multiplies bytes and adds pairs into 16 bits, exact for weights below 16; of larger ones the
 * halves are multiplied one by one. 6 rows by 8 outputs at a time. */
#include "base/cpu.h"
#include "kernels/kernel.h"

enum { ROWS = 6 };

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))
#define INLINE AVX2 static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum {
    LANES = 8,
    NARROW = 32 /* inputs whose products fit 16 bits together: 8 times 2 * 15 * 128 is 30720 */
};

/* Inputs 4j .. 4j + 3 of a unit, 8 outputs. */
INLINE __m256i quad_of(const uint8_t *unit, const int j, const int bits)
{
    const __m256i low_bits = _mm256_set1_epi8((char)(bits == 4 ? 15 : 3));
    if (bits == 8) return _mm256_loadu_si256((const void *)unit);
    if (bits != 3) {
        const __m256i all = _mm256_loadu_si256((const void *)unit);
        return _mm256_and_si256(_mm256_srli_epi16(all, j * bits), low_bits);
    }
    const __m256i low = _mm256_loadu_si256((const void *)(unit + j / 4 * 64));
    const __m256i high = _mm256_loadu_si256((const void *)(unit + 128));
    const __m256i bit2 = j < 2 ? _mm256_slli_epi16(high, 2 - j) : _mm256_srli_epi16(high, j - 2);
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, j % 4 * 2), low_bits),
                           _mm256_and_si256(bit2, _mm256_set1_epi8(4)));
}

INLINE __m256i four_inputs(const int8_t *a)
{
    int32_t four;
    memcpy(&four, a, sizeof four);
    return _mm256_set1_epi32(four);
}

/* wide += sums of products of some units: at most NARROW inputs of fewer than 8 bits. */
INLINE void add_narrow(const uint8_t *codes, int64_t stride, const int8_t *a, int64_t a_stride, int64_t units,
                       __m256i wide[ROWS], const int rows, const int bits)
{
    const int quads = bits == 4 ? 2 : bits == 2 ? 4 : 8;
    __m256i narrow[ROWS];
    UNROLL for (int r = 0; r < rows; r++) narrow[r] = _mm256_setzero_si256();
    for (int64_t u = 0; u < units; u++, codes += stride, a += 4 * quads) {
        UNROLL for (int j = 0; j < quads; j++)
        {
            const __m256i w = quad_of(codes, j, bits);
            UNROLL for (int r = 0; r < rows; r++) narrow[r] =
                _mm256_add_epi16(narrow[r], _mm256_maddubs_epi16(w, four_inputs(a + r * a_stride + 4 * j)));
        }
    }
    UNROLL for (int r = 0; r < rows; r++) wide[r] =
        _mm256_add_epi32(wide[r], _mm256_madd_epi16(narrow[r], _mm256_set1_epi16(1)));
}

/* wide += the products of one unit of 8 bits. */
INLINE void add_bytes(const uint8_t *codes, const int8_t *a, int64_t a_stride, __m256i wide[ROWS], const int rows)
{
    const __m256i w = quad_of(codes, 0, 8), half = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(w, half), high = _mm256_and_si256(_mm256_srli_epi16(w, 4), half);
    UNROLL for (int r = 0; r < rows; r++)
    {
        const __m256i x = four_inputs(a + r * a_stride);
        const __m256i ones = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), _mm256_set1_epi16(1));
        const __m256i sixteens = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(16));
        wide[r] = _mm256_add_epi32(wide[r], _mm256_add_epi32(ones, sixteens));
    }
}

/* out [rows, 8] = plain sums of products over some units of inputs. */
INLINE void add_units(const oq_tiles *t, const uint8_t *codes, const int8_t *a, int64_t units,
                      int32_t (*out)[LANES], const int rows, const int bits)
{
    const int64_t stride = t->width / OQ_TILE * (bits == 3 ? 192 : 64), a_stride = t->a_stride;
    const int64_t unit = bits == 8 ? 4 : bits == 4 ? 8 : bits == 2 ? 16 : 32, step = bits == 8 ? 1 : NARROW / unit;
    __m256i wide[ROWS];
    UNROLL for (int r = 0; r < rows; r++) wide[r] = _mm256_setzero_si256();
    for (int64_t u = 0; u < units; u += step, codes += step * stride, a += step * unit) {
        if (bits == 8)
            add_bytes(codes, a, a_stride, wide, rows);
        else
            add_narrow(codes, stride, a, a_stride, oq_least(step, units - u), wide, rows, bits);
    }
    UNROLL for (int r = 0; r < rows; r++) _mm256_storeu_si256((void *)out[r], wide[r]);
}

typedef void (*add_function)(const oq_tiles *t, const uint8_t *codes, const int8_t *a, int64_t units,
                             int32_t (*out)[LANES]);

#define DEFINE(rows, bits)                                                                                        \
    AVX2 static void add_##rows##_##bits(const oq_tiles *t, const uint8_t *codes, const int8_t *a, int64_t units, \
                                         int32_t (*out)[LANES])                                                   \
    {                                                                                                             \
        add_units(t, codes, a, units, out, rows, bits);                                                           \
    }
#define DEFINE_ROWS(bits) \
    DEFINE(1, bits) DEFINE(2, bits) DEFINE(3, bits) DEFINE(4, bits) DEFINE(5, bits) DEFINE(6, bits)
#define NAMES(bits) {add_1_##bits, add_2_##bits, add_3_##bits, add_4_##bits, add_5_##bits, add_6_##bits}

DEFINE_ROWS(2)
DEFINE_ROWS(3)
DEFINE_ROWS(4)
DEFINE_ROWS(8)

/* [bits][rows - 1] */
static const add_function functions[4][ROWS] = {NAMES(2), NAMES(3), NAMES(4), NAMES(8)};

/* ---- what is done once a group --------------------------------------------- */

/* sums [8] of row r - z_a sum(w) - z_w sum(a - z_a), in pairs of 16 bits. */
INLINE __m256i corrected(const oq_tiles *t, const oq_run *run, int64_t lane, int r, const int32_t sums[LANES])
{
    const uint8_t *zeros = t->zeros + run->group * t->zero_stride + lane;
    const __m256i high = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)zeros)), 16);
    __m256i total = _mm256_loadu_si256((const void *)sums);
    for (int64_t s = run->segment; s < run->segment + run->segments; s++) {
        const __m128i codes = _mm_loadu_si128((const void *)(t->code_sums + s * t->width + lane));
        const __m256i columns = _mm256_or_si256(_mm256_cvtepu16_epi32(codes), high);
        const __m256i pair = _mm256_set1_epi32(t->pairs[r * t->layout->segments + s]);
        total = _mm256_add_epi32(total, _mm256_madd_epi16(columns, pair));
    }
    return total;
}

INLINE __m256 in_float(const oq_tiles *t, const oq_run *run, int64_t lane, int r, const int32_t (*sums)[LANES])
{
    return _mm256_cvtepi32_ps(corrected(t, run, lane, r, sums[r]));
}

/* t->sums += float(total) scale, for 8 outputs. */
AVX2 static void finish(const oq_tiles *t, const oq_run *run, int64_t lane, int rows, const int32_t (*sums)[LANES])
{
    const __m256 base = _mm256_set1_ps(256);
    const __m256 scale = _mm256_loadu_ps(t->scales + run->group * t->width + lane);
    const int planes = t->x_scales ? 3 : 1;
    float *to = t->sums + lane;
    for (int r = 0; r < rows; r += planes, to += OQ_PANEL) {
        __m256 sum = in_float(t, run, lane, r, sums);
        if (planes == 3) {
            sum = _mm256_add_ps(_mm256_mul_ps(sum, base), in_float(t, run, lane, r + 1, sums));
            sum = _mm256_add_ps(_mm256_mul_ps(sum, base), in_float(t, run, lane, r + 2, sums));
        }
        sum = _mm256_mul_ps(sum, scale);
        if (planes == 3)
            sum = _mm256_mul_ps(sum, _mm256_set1_ps(t->x_scales[r / 3 * t->layout->groups + run->group]));
        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum));
    }
}

static void multiply_lanes(const oq_tiles *t, int rows, int64_t lane)
{
    const oq_layout *l = t->layout;
    const add_function add = functions[l->stored_bits == 8 ? 3 : l->stored_bits - 2][rows - 1];
    const uint8_t *codes = t->codes + lane / OQ_TILE * l->unit_bytes + lane % OQ_TILE * 4;
    oq_run run = {0};
    int32_t sums[ROWS][LANES];
    while (oq_next_run(l, &run)) {
        add(t, codes + run.unit * oq_unit_stride(t), t->a + run.unit * l->unit, run.units, sums);
        finish(t, &run, lane, rows, (const int32_t (*)[LANES])sums);
    }
}

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    memset(t->sums, 0, (size_t)rows * OQ_PANEL * sizeof(float));
    for (int lane = 0; lane < tiles * OQ_TILE; lane += LANES) multiply_lanes(t, rows, lane);
    return OQ_OK;
}

static bool available(void) { return oq_cpu_features()->avx2; }

#else

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    (void)t, (void)rows, (void)tiles;
    return OQ_UNSUPPORTED;
}

static bool available(void) { return false; }

#endif

const oq_kernel oq_kernel_avx2 = {"avx2", available, ROWS, multiply};
