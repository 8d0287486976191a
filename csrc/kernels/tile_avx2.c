/* AVX2: vpmaddubsw multiplies bytes and adds pairs into 16 bits, exact for weights below 16; of larger ones vpmaddwd
 * multiplies what was widened to 16 bits before. One row takes its weights as they come from memory; for more they are
 * unpacked once, a few inputs at a time, and multiplied 6 rows by 16 outputs. */
#include "base/cpu.h"
#include "kernels/kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <string.h>

#include "base/avx2.h"

enum {
    MOST_ROWS = 48,
    LANES = 8,
    ROWS = 6,     /* by a tile: 12 sums, two vectors of weights, one of activations and a product are all registers */
    WORDS = 64,   /* unpacked at a time, that activations and sums beside them stay in the first-level cache */
    AHEAD = 2048  /* bytes asked for before one row takes them: its own prefetching alone is a quarter slower */
};

/* What some inputs of a tile are multiplied as, 32 bits an output and word: 4 inputs, or 2 of 8 bits. */
typedef struct {
    _Alignas(32) int32_t weights[WORDS][OQ_TILE];
    int32_t wide[MOST_ROWS][WORDS]; /* activations, where weights have 8 bits */
} scratch;

typedef int32_t panel_sums[OQ_PANEL];

/* ---- weights ------------------------------------------------------------------ */

/* Inputs 4j .. 4j + 3 of a unit, 8 outputs. */
INLINE __m256i quad_of(const uint8_t *unit, const int j, const int bits)
{
    const __m256i low_bits = _mm256_set1_epi8((char)(bits == 4 ? 15 : 3));
    if (bits != 3) {
        const __m256i all = oq_load_words(unit);
        return _mm256_and_si256(_mm256_srli_epi16(all, j * bits), low_bits);
    }
    const __m256i low = oq_load_words(unit + j / 4 * 64);
    const __m256i high = oq_load_words(unit + 128);
    const __m256i bit2 = j < 2 ? _mm256_slli_epi16(high, 2 - j) : _mm256_srli_epi16(high, j - 2);
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low, j % 4 * 2), low_bits),
                           _mm256_and_si256(bit2, _mm256_set1_epi8(4)));
}

/* Word j of a unit, 8 outputs. Of 8 bits: inputs 0 and 2, then 1 and 3. */
INLINE __m256i word_of(const uint8_t *unit, const int j, const int bits)
{
    if (bits != 8) return quad_of(unit, j, bits);
    const __m256i all = oq_load_words(unit);
    return j == 0 ? _mm256_and_si256(all, _mm256_set1_epi16(255)) : _mm256_srli_epi16(all, 8);
}

static int words_of_unit(int bits) { return bits == 3 ? 8 : bits == 2 ? 4 : 2; }

/* Words whose products surely fit 16 bits together: 2 * 128 * the largest weight each. */
INLINE int64_t fitting(const int bits) { return bits == 4 ? 8 : bits == 3 ? 16 : 32; }

INLINE void unpack_units(scratch *s, const uint8_t *codes, int64_t stride, int64_t units, const int bits)
{
    const int words = words_of_unit(bits);
    int32_t *to = s->weights[0];
    const int64_t ahead = units * stride; /* what comes next is read while these are multiplied */
    for (int64_t u = 0; u < units; u++, codes += stride) {
        for (int line = 0; line < (bits == 3 ? 3 : 1); line++)
            _mm_prefetch((const char *)(codes + ahead + 64 * line), _MM_HINT_T0);
        UNROLL for (int j = 0; j < words; j++, to += OQ_TILE)
        {
            oq_store_words(to, word_of(codes, j, bits));
            oq_store_words(to + LANES, word_of(codes + 32, j, bits));
        }
    }
}

AVX2 static void unpack(scratch *s, const uint8_t *codes, int64_t stride, int64_t units, int bits)
{
    switch (bits) {
    case 2: unpack_units(s, codes, stride, units, 2); break;
    case 3: unpack_units(s, codes, stride, units, 3); break;
    case 4: unpack_units(s, codes, stride, units, 4); break;
    default: unpack_units(s, codes, stride, units, 8);
    }
}

/* ---- activations --------------------------------------------------------------- */

/* Four inputs as two words of 16 bits: 0 and 2, 1 and 3. */
AVX2 static void widen(int32_t *to, const int8_t *a, int64_t quads)
{
    int64_t q = 0;
    for (; q + 8 <= quads; q += 8, to += 16) {
        const __m256i x = oq_load_words(a + 4 * q);
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd = _mm256_srai_epi16(x, 8);
        const __m256i first = _mm256_unpacklo_epi32(even, odd), second = _mm256_unpackhi_epi32(even, odd);
        oq_store_words(to, _mm256_permute2x128_si256(first, second, 0x20));
        oq_store_words(to + 8, _mm256_permute2x128_si256(first, second, 0x31));
    }
    for (; q < quads; q++, to += 2) {
        const int8_t *x = a + 4 * q;
        to[0] = (int32_t)((uint32_t)(uint16_t)x[2] << 16 | (uint16_t)x[0]);
        to[1] = (int32_t)((uint32_t)(uint16_t)x[3] << 16 | (uint16_t)x[1]);
    }
}

INLINE __m256i all_lanes(const int8_t *word)
{
    int32_t bits;
    memcpy(&bits, word, sizeof bits);
    return _mm256_set1_epi32(bits);
}

/* ---- products ------------------------------------------------------------------ */

INLINE __m256i multiplied(__m256i sum, __m256i weights, __m256i x, const int bits)
{
    return bits == 8 ? _mm256_add_epi32(sum, _mm256_madd_epi16(weights, x))
                     : _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x));
}

INLINE void add_to(int32_t *to, __m256i sum, const int bits)
{
    const __m256i x = bits == 8 ? sum : _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    oq_store_words(to, _mm256_add_epi32(oq_load_words(to), x));
}

/* total [rows, 16] += unpacked weights times rows of words, `stride` bytes apart. */
INLINE void add_words(const int32_t (*weights)[OQ_TILE], int64_t words, const int8_t *a, int64_t stride,
                      panel_sums *total, const int rows, const int bits)
{
    __m256i sum[ROWS][2];
    const int64_t step = bits == 8 ? words : fitting(bits);
    for (int64_t begin = 0; begin < words; begin += step) {
        const int64_t end = oq_least(begin + step, words);
        UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
        for (int64_t w = begin; w < end; w++) {
            const __m256i low = oq_load_words(weights[w]);
            const __m256i high = oq_load_words(weights[w] + LANES);
            const int8_t *x = a + 4 * w;
            UNROLL for (int r = 0; r < rows; r++)
            {
                const __m256i four = all_lanes(x + r * stride);
                sum[r][0] = multiplied(sum[r][0], low, four, bits);
                sum[r][1] = multiplied(sum[r][1], high, four, bits);
                IN_TURN(x, sum[r][0], sum[r][1]);
            }
        }
        TO_MEMORY;
        UNROLL for (int r = 0; r < rows; r++)
        {
            add_to(total[r], sum[r][0], bits);
            add_to(total[r] + LANES, sum[r][1], bits);
        }
    }
}

typedef void (*add_function)(const int32_t (*weights)[OQ_TILE], int64_t words, const int8_t *a, int64_t stride,
                             panel_sums *total);

#define DEFINE(rows, bits)                                                                                     \
    AVX2 static void add_##rows##_##bits(const int32_t (*weights)[OQ_TILE], int64_t words, const int8_t *a,    \
                                         int64_t stride, panel_sums *total)                                    \
    {                                                                                                          \
        add_words(weights, words, a, stride, total, rows, bits);                                               \
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

/* total [rows, 16 tiles] += the products of some units, at most WORDS. */
static void add_block(const oq_tiles *t, scratch *s, int64_t unit, int64_t units, int rows, int tiles,
                      panel_sums *total)
{
    const oq_layout *l = t->layout;
    const int64_t words = units * words_of_unit(l->stored_bits);
    const add_function *add = functions[l->stored_bits == 8 ? 3 : l->stored_bits - 2];
    const int8_t *a = t->a + unit * l->unit;
    int64_t stride = t->a_stride;
    if (l->stored_bits == 8) {
        for (int r = 0; r < rows; r++) widen(s->wide[r], a + r * stride, units);
        a = (const int8_t *)s->wide[0];
        stride = sizeof s->wide[0];
    }
    for (int tile = 0; tile < tiles; tile++) {
        unpack(s, t->codes + unit * oq_unit_stride(t) + tile * l->unit_bytes, oq_unit_stride(t), units,
               l->stored_bits);
        for (int r = 0; r < rows; r += ROWS)
            add[oq_least(ROWS, rows - r) - 1]((const int32_t(*)[OQ_TILE])s->weights, words, a + r * stride, stride,
                                              (panel_sums *)(total[r] + tile * OQ_TILE));
    }
}

/* ---- one row ------------------------------------------------------------------- */

/* total [16 tiles] += one row's products, the weights unpacked on the way: a panel's units as they lie in memory. */
INLINE void add_row(const uint8_t *codes, int64_t stride, const int8_t *a, int64_t units, int32_t *total,
                    const int tiles, const int bits)
{
    const int words = words_of_unit(bits), unit_bytes = bits == 3 ? 192 : 64;
    const int64_t step = bits == 8 ? units : fitting(bits) / words;
    __m256i sum[2 * OQ_PANEL_TILES];
    for (int64_t begin = 0; begin < units; begin += step) {
        const int64_t end = oq_least(begin + step, units);
        UNROLL for (int i = 0; i < 2 * tiles; i++) sum[i] = _mm256_setzero_si256();
        for (int64_t u = begin; u < end; u++, a += 4 * words) {
            const uint8_t *unit = codes + u * stride;
            UNROLL for (int i = 0; i < 2 * tiles; i += 2)
            {
                const uint8_t *tile = unit + i / 2 * unit_bytes;
                for (int line = 0; line < unit_bytes; line += 64)
                    _mm_prefetch((const char *)(tile + line + AHEAD), _MM_HINT_T0);
                UNROLL for (int j = 0; j < words; j++)
                {
                    const __m256i x = all_lanes(a + 4 * j);
                    sum[i] = multiplied(sum[i], word_of(tile, j, bits), x, bits);
                    sum[i + 1] = multiplied(sum[i + 1], word_of(tile + 32, j, bits), x, bits);
                }
                IN_TURN(unit, sum[i], sum[i + 1]);
            }
        }
        TO_MEMORY;
        UNROLL for (int i = 0; i < 2 * tiles; i++) add_to(total + LANES * i, sum[i], bits);
    }
}

#define DEFINE_ROW(bits)                                                                                          \
    AVX2 static void add_row_##bits(const uint8_t *codes, int64_t stride, const int8_t *a, int64_t units,         \
                                    int32_t *total, int tiles)                                                    \
    {                                                                                                             \
        const int unit_bytes = bits == 3 ? 192 : 64;                                                              \
        if (tiles == OQ_PANEL_TILES) {                                                                            \
            add_row(codes, stride, a, units, total, OQ_PANEL_TILES, bits);                                        \
            return;                                                                                               \
        }                                                                                                         \
        for (int tile = 0; tile < tiles; tile++)                                                                  \
            add_row(codes + tile * unit_bytes, stride, a, units, total + tile * OQ_TILE, 1, bits);                \
    }
DEFINE_ROW(2)
DEFINE_ROW(3)
DEFINE_ROW(4)
DEFINE_ROW(8)

static void add_one(const oq_tiles *t, scratch *s, int64_t unit, int64_t units, int tiles, int32_t *total)
{
    const oq_layout *l = t->layout;
    const int64_t stride = oq_unit_stride(t);
    const uint8_t *codes = t->codes + unit * stride;
    const int8_t *a = t->a + unit * l->unit;
    switch (l->stored_bits) {
    case 2: add_row_2(codes, stride, a, units, total, tiles); break;
    case 3: add_row_3(codes, stride, a, units, total, tiles); break;
    case 4: add_row_4(codes, stride, a, units, total, tiles); break;
    default:
        widen(s->wide[0], a, units);
        add_row_8(codes, stride, (const int8_t *)s->wide[0], units, total, tiles);
    }
}

/* ---- what is done once a group --------------------------------------------------- */

/* total = - z_a sum(w) - z_w sum(a - z_a), in pairs of 16 bits: what the products are added to. */
AVX2 static void correct(const oq_tiles *t, const oq_run *run, int rows, int lanes, panel_sums *total)
{
    const uint8_t *zeros = t->zeros + run->group * t->zero_stride;
    for (int64_t s = run->segment; s < run->segment + run->segments; s++)
        for (int lane = 0; lane < lanes; lane += LANES) {
            const __m128i codes = _mm_loadu_si128((const void *)(t->code_sums + s * t->width + lane));
            const __m256i zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(zeros + lane)));
            const __m256i columns = _mm256_or_si256(_mm256_cvtepu16_epi32(codes), _mm256_slli_epi32(zero, 16));
            for (int r = 0; r < rows; r++) {
                __m256i *sum = (__m256i *)(total[r] + lane);
                __m256i x = _mm256_madd_epi16(columns, _mm256_set1_epi32(t->pairs[r * t->layout->segments + s]));
                if (s > run->segment) x = _mm256_add_epi32(oq_load_words(sum), x);
                oq_store_words(sum, x);
            }
        }
}

INLINE __m256 in_float(const int32_t *sums) { return _mm256_cvtepi32_ps(oq_load_words(sums)); }

INLINE void add_floats(float *to, __m256 x) { _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), x)); }

/* t->sums += float(total) scale. */
AVX2 static void scale(const oq_tiles *t, const oq_run *run, int rows, int lanes, const panel_sums *total)
{
    const float *scales = t->scales + run->group * t->width;
    for (int r = 0; r < rows; r++)
        UNROLL for (int lane = 0; lane < lanes; lane += LANES)
            add_floats(t->sums + r * OQ_PANEL + lane,
                       _mm256_mul_ps(in_float(total[r] + lane), _mm256_loadu_ps(scales + lane)));
}

/* The sums of two planes or three, as join in plain.c. */
INLINE __m256 join(const panel_sums *total, int lane, const int planes)
{
    const __m256 base = _mm256_set1_ps(256);
    if (planes == 2)
        return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(oq_load_words(total[0] + lane), 8),
                                                   oq_load_words(total[1] + lane)));
    const __m256 high = _mm256_add_ps(_mm256_mul_ps(in_float(total[0] + lane), base), in_float(total[1] + lane));
    return _mm256_add_ps(_mm256_mul_ps(high, base), in_float(total[2] + lane));
}

/* The same of planes. */
INLINE void scale_planes(const oq_tiles *t, const oq_run *run, int rows, int lanes, const panel_sums *total,
                         const int planes)
{
    const float *scales = t->scales + run->group * t->width;
    for (int r = 0; r < rows / planes; r++, total += planes) {
        const __m256 x_scale = _mm256_set1_ps(t->x_scales[r * t->layout->segments + run->segment]);
        UNROLL for (int lane = 0; lane < lanes; lane += LANES)
        {
            const __m256 sum = _mm256_mul_ps(join(total, lane, planes), _mm256_loadu_ps(scales + lane));
            add_floats(t->sums + r * OQ_PANEL + lane, _mm256_mul_ps(sum, x_scale));
        }
    }
}

AVX2 static void flush(const oq_tiles *t, const oq_run *run, int rows, int lanes, const panel_sums *total)
{
    if (t->planes == 1)
        scale(t, run, rows, lanes, total);
    else if (t->planes == 2)
        scale_planes(t, run, rows, lanes, total, 2);
    else
        scale_planes(t, run, rows, lanes, total, 3);
}

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    const int64_t most = WORDS / words_of_unit(t->layout->stored_bits);
    _Alignas(32) panel_sums total[MOST_ROWS];
    scratch s;
    oq_run run = {0};
    memset(t->sums, 0, (size_t)rows * OQ_PANEL * sizeof(float));
    while (oq_next_run(t->layout, &run)) {
        correct(t, &run, rows, tiles * OQ_TILE, total);
        for (int64_t done = 0; done < run.units; done += most) {
            const int64_t units = oq_least(most, run.units - done);
            if (rows == 1)
                add_one(t, &s, run.unit + done, units, tiles, total[0]);
            else
                add_block(t, &s, run.unit + done, units, rows, tiles, total);
        }
        flush(t, &run, rows, tiles * OQ_TILE, (const panel_sums *)total);
    }
    return OQ_OK;
}

static bool available(void) { return oq_cpu_features()->avx2; }

const oq_kernel oq_kernel_avx2 = {"avx2", available, MOST_ROWS, 1, multiply};

#else

const oq_kernel oq_kernel_avx2 = OQ_ABSENT_KERNEL("avx2");

#endif
