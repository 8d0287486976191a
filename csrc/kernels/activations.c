/* Activations as integers, laid out as the weights' inputs are: padded to whole units a segment. */
#include <stdatomic.h>
#include <string.h>

#include "base/parallel.h"
#include "kernels/kernel.h"

enum { ROW_CHUNK = 8, LANES = 32 };

typedef struct {
    const oq_layout *layout;
    const oq_qlinear_spec *spec;
    const float *x;
    int64_t rows;
    oq_activations *to;
    atomic_int_fast64_t bad_row; /* the first that holds what cannot be quantized; rows: none */
} job;

/* ---- one row -------------------------------------------------------------- */

/* Smallest and largest depend on no order: as many lanes as hide latency and fit the registers of AVX2. */
OQ_INLINE oq_range find_range(const float *x, int64_t n)
{
    float lo[LANES] = {0}, hi[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            lo[j] = x[i + j] < lo[j] ? x[i + j] : lo[j];
            hi[j] = x[i + j] > hi[j] ? x[i + j] : hi[j];
        }
    for (int j = 0; j < n - i; j++) {
        lo[j] = x[i + j] < lo[j] ? x[i + j] : lo[j];
        hi[j] = x[i + j] > hi[j] ? x[i + j] : hi[j];
    }
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) {
            lo[j] = lo[j + half] < lo[j] ? lo[j + half] : lo[j];
            hi[j] = hi[j + half] > hi[j] ? hi[j + half] : hi[j];
        }
    return (oq_range){.lo = (oq_real)lo[0], .hi = (oq_real)hi[0]};
}

/* a' = clamp(round(x / h) + z, 0, top) - 128; returns the sum of a' - (z - 128). */
OQ_INLINE int32_t quantize_segment(const float *x, int64_t n, oq_grid grid, int8_t *a)
{
    const float scale = (float)grid.scale, zero = (float)grid.zero, top = (float)grid.top;
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float raw = rintf(x[i] / scale) + zero, low = raw > 0 ? raw : 0;
        const int32_t code = (int32_t)(low < top ? low : top);
        a[i] = (int8_t)(code - 128);
        sum += code;
    }
    return sum - (int32_t)n * (int32_t)grid.zero;
}

OQ_INLINE int32_t pair_of(int32_t zero, int32_t sum)
{
    return (int32_t)((uint32_t)-zero & 0xffffu) | (int32_t)((uint32_t)-sum << 16);
}

OQ_VECTORIZED static void quantize_row(const job *j, int64_t row)
{
    const oq_layout *l = j->layout;
    const float *x = j->x + row * l->in;
    oq_range range = find_range(x, l->in);
    if (j->spec->clipped) {
        range.hi *= (oq_real)j->spec->keep_max;
        range.lo *= (oq_real)j->spec->keep_min;
    }
    const oq_grid grid = oq_grid_from_range(j->spec->activation, range);
    int8_t *a = j->to->codes + row * j->to->stride;
    int32_t *pair = j->to->pairs + row * l->segments;
    j->to->scales[row] = (float)grid.scale;
    for (int64_t g = 0; g < l->groups; g++)
        for (int64_t done = 0, n; done < oq_group_length(l, g); done += n, x += n) {
            n = oq_least(OQ_SEGMENT, oq_group_length(l, g) - done);
            const int64_t padded = oq_segment_units(l, n) * l->unit;
            *pair++ = pair_of((int32_t)grid.zero - 128, quantize_segment(x, n, grid, a));
            memset(a + n, 0, (size_t)(padded - n));
            a += padded;
        }
}

/* ---- one row in fixed point ----------------------------------------------- */

enum { MOST_PLANES = 3 };

/* Balanced digits hold 127.5 times these at most: what x / step is rounded by on the way is room enough. */
static const float MOST_FIXED[] = {[2] = 127 * 256, [3] = 127 * 65536};

OQ_INLINE float largest(const float *x, int64_t n)
{
    const oq_range range = find_range(x, n);
    return (float)(range.hi > -range.lo ? range.hi : -range.lo);
}

/* Brings |x| <= most into the range of the digits; no smaller than 2^-126, whose inverse is finite. */
static float fixed_step(float most, int planes)
{
    const float step = most / MOST_FIXED[planes];
    return step > FLT_MIN ? step : FLT_MIN;
}

/* Digits of x / step in base 256, each -128..127, highest plane first; and their sums. */
OQ_INLINE void split_segment(const float *x, int64_t n, float inverse, int8_t *a, int64_t stride, const int planes,
                             int32_t sums[MOST_PLANES])
{
    int32_t high = 0, middle = 0, low = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t q = (int32_t)rintf(x[i] * inverse);
        const int32_t d0 = ((q + 128) & 255) - 128, q1 = (q - d0) / 256;
        const int32_t d1 = planes == 3 ? ((q1 + 128) & 255) - 128 : q1, d2 = (q1 - d1) / 256;
        if (planes == 3) a[i] = (int8_t)d2;
        a[(planes - 2) * stride + i] = (int8_t)d1;
        a[(planes - 1) * stride + i] = (int8_t)d0;
        high += d2;
        middle += d1;
        low += d0;
    }
    sums[0] = high;
    sums[planes - 2] = middle;
    sums[planes - 1] = low;
}

/* A segment of a row, padded with zeros to whole units; returns its step. */
OQ_INLINE float split(const float *x, int64_t n, int64_t padded, int8_t *a, int64_t stride, int32_t *pairs,
                      int64_t segments, const int planes)
{
    int32_t sums[MOST_PLANES];
    const float step = fixed_step(largest(x, n), planes);
    split_segment(x, n, 1 / step, a, stride, planes, sums);
    for (int p = 0; p < planes; p++) {
        memset(a + p * stride + n, 0, (size_t)(padded - n));
        pairs[p * segments] = pair_of(0, sums[p]);
    }
    return step;
}

OQ_VECTORIZED static void split_row(const job *j, int64_t row)
{
    const oq_layout *l = j->layout;
    const int planes = j->to->planes;
    const float *x = j->x + row * l->in;
    int8_t *a = j->to->codes + row * planes * j->to->stride;
    int32_t *pairs = j->to->pairs + row * planes * l->segments;
    float *step = j->to->scales + row * l->segments;
    for (int64_t g = 0; g < l->groups; g++)
        for (int64_t done = 0, n; done < oq_group_length(l, g); done += n, x += n) {
            n = oq_least(OQ_SEGMENT, oq_group_length(l, g) - done);
            const int64_t padded = oq_segment_units(l, n) * l->unit;
            *step++ = planes == 2 ? split(x, n, padded, a, j->to->stride, pairs, l->segments, 2)
                                  : split(x, n, padded, a, j->to->stride, pairs, l->segments, 3);
            a += padded;
            pairs++;
        }
}

/* ---- all rows ------------------------------------------------------------- */

/* The bits of |x|, compared as integers, order NaN above infinity above all numbers. */
OQ_VECTORIZED static uint32_t most_bits(const float *x, int64_t count)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

static const float MOST = FLT_MAX / 2; /* x^ may lie half a step outside x's range */

static bool is_quantizable(const float *x, int64_t count)
{
    uint32_t limit;
    memcpy(&limit, &MOST, sizeof limit);
    return most_bits(x, count) <= limit;
}

static void note_bad_row(job *j, int64_t row)
{
    int_fast64_t first = atomic_load(&j->bad_row);
    while (row < first && !atomic_compare_exchange_weak(&j->bad_row, &first, row)) continue;
}

static void run_chunk(void *user, int64_t item, int worker)
{
    job *j = user;
    (void)worker;
    for (int64_t row = item * ROW_CHUNK; row < oq_least(j->rows, (item + 1) * ROW_CHUNK); row++)
        if (!is_quantizable(j->x + row * j->layout->in, j->layout->in))
            note_bad_row(j, row);
        else if (oq_is_quantized(j->spec->activation))
            quantize_row(j, row);
        else
            split_row(j, row);
}

static oq_code refuse(oq_context *context, const float *x, int64_t row)
{
    int64_t i = 0;
    while (fabsf(x[i]) <= MOST) i++;
    return oq_fail(context, OQ_NOT_FINITE, "x row %lld column %lld: %g is not finite or too large to quantize",
                   (long long)row, (long long)i, (double)x[i]);
}

oq_code oq_activations_make(oq_context *context, const oq_qlinear *linear, const float *x, int64_t first,
                            int64_t rows, oq_activations *to)
{
    const oq_layout *l = &linear->layout;
    const int planes = oq_planes_of(linear->spec.activation);
    /* One cache line more than a multiple of 4096 bytes: rows should not meet in one set of the cache. */
    const int64_t stride = oq_pieces(l->units * l->unit, 64) * 64 + 64;
    *to = (oq_activations){.rows = rows, .planes = planes, .stride = stride};
    OQ_NEW(context, to->codes, rows * planes * stride);
    OQ_NEW(context, to->pairs, rows * planes * l->segments);
    OQ_NEW(context, to->scales, rows * (planes == 1 ? 1 : l->segments));
    job j = {.layout = l, .spec = &linear->spec, .x = x + first * l->in, .rows = rows, .to = to};
    atomic_init(&j.bad_row, rows);
    oq_parallel_for(context->threads, oq_pieces(rows, ROW_CHUNK), run_chunk, &j);
    const int64_t bad = atomic_load(&j.bad_row);
    return bad == rows ? OQ_OK : refuse(context, j.x + bad * l->in, first + bad);
}

oq_code oq_qlinear_quantize(oq_context *context, const oq_qlinear *linear, const float *x, int64_t rows,
                            oq_activations *activations)
{
    return oq_activations_make(context, linear, x, 0, rows, activations);
}
