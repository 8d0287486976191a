/* Included by lanes_avx512.c, lanes_avx2.c and lanes_plain.c, each with its OQ_ISA. */
#include "runtime/lanes.h"
#include "runtime/lanes_kernels.h"

/* Rows of a register tile: as many accumulators as there are registers. */
#if OQ_ISA == 2
#define TILE_ROWS 8
#define TILE_VECTORS 2
#else
#define TILE_ROWS 4
#define TILE_VECTORS 1
#endif

#define UNROLL _Pragma("GCC unroll 16")

/* ---- a dense matrix ----------------------------------------------------- */

/* Inputs k..k + 15 of a row. */
LANES_INLINE lanes widen(oq_dense_kind kind, const void *row, int64_t k)
{
    if (kind == OQ_DENSE_HALF) return lanes_half((const uint16_t *)row + k);
    if (kind == OQ_DENSE_BFLOAT) return lanes_bfloat((const uint16_t *)row + k);
    return lanes_load((const float *)row + k);
}

LANES_INLINE size_t value_bytes(oq_dense_kind kind) { return kind == OQ_DENSE_FLOAT ? 4 : 2; }

/* The last n < 16 inputs of a row, zeros behind them. */
LANES_INLINE lanes widen_part(oq_dense_kind kind, const void *row, int64_t k, int64_t n)
{
    float some[LANES] = {0};
    const size_t bytes = value_bytes(kind);
    memcpy(some, (const char *)row + (size_t)k * bytes, (size_t)n * bytes);
    return widen(kind, some, 0);
}

typedef struct {
    const char *row[OQ_DENSE_COLUMNS];
} columns;

LANES_INLINE columns columns_at(const oq_dense *w, int64_t first, int count)
{
    columns c;
    for (int i = 0; i < OQ_DENSE_COLUMNS; i++) {
        const int64_t n = first + (i < count ? i : 0); /* what is missing repeats the first and is not stored */
        c.row[i] = (const char *)w->values + (size_t)(n * w->in) * value_bytes(w->kind);
    }
    return c;
}

/* One row of x: the weights are used as they come. */
LANES_INLINE void dense_single(oq_dense_kind kind, const columns *c, int64_t in, const float *x, float *sums)
{
    lanes sum[OQ_DENSE_COLUMNS];
    const int64_t whole = in / LANES * LANES;
    UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++) sum[i] = lanes_all(0);
    for (int64_t k = 0; k < whole; k += LANES) {
        const lanes xs = lanes_load(x + k);
        UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++) sum[i] =
            lanes_multiply_add(xs, widen(kind, c->row[i], k), sum[i]);
    }
    if (whole < in) {
        const lanes xs = lanes_load_part(x + whole, in - whole);
        UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++) sum[i] =
            lanes_multiply_add(xs, widen_part(kind, c->row[i], whole, in - whole), sum[i]);
    }
    UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++) sums[i] = lanes_sum(sum[i]);
}

/* scratch [4, in rounded up] = the weights, widened once for all rows. */
LANES_INLINE void widen_columns(oq_dense_kind kind, const columns *c, int64_t in, float *scratch)
{
    const int64_t whole = in / LANES * LANES, padded = (in + LANES - 1) / LANES * LANES;
    for (int i = 0; i < OQ_DENSE_COLUMNS; i++) {
        float *to = scratch + i * padded;
        for (int64_t k = 0; k < whole; k += LANES) lanes_store(to + k, widen(kind, c->row[i], k));
        if (whole < in) lanes_store(to + whole, widen_part(kind, c->row[i], whole, in - whole));
    }
}

/* sums [rows, 4] of `rows` rows of x and the widened weights; rows is a constant. */
LANES_INLINE void dense_tile(int rows, const float *weights, int64_t in, const float *x, float *sums)
{
    lanes sum[4][OQ_DENSE_COLUMNS];
    const int64_t whole = in / LANES * LANES, padded = (in + LANES - 1) / LANES * LANES;
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++) sum[r][i] =
        lanes_all(0);
    for (int64_t k = 0; k < padded; k += LANES) {
        UNROLL for (int r = 0; r < rows; r++)
        {
            const float *at = x + r * in + k;
            const lanes xs = k < whole ? lanes_load(at) : lanes_load_part(at, in - whole);
            UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++) sum[r][i] =
                lanes_multiply_add(xs, lanes_load(weights + i * padded + k), sum[r][i]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int i = 0; i < OQ_DENSE_COLUMNS; i++)
        sums[r * OQ_DENSE_COLUMNS + i] = lanes_sum(sum[r][i]);
}

LANES_INLINE void store_sums(const oq_dense *w, const float *sums, int64_t first, int count, float *y)
{
    for (int i = 0; i < count; i++) y[first + i] = sums[i] + (w->bias ? w->bias[first + i] : 0);
}

LANES_INLINE void dense_kind(oq_dense_kind kind, const oq_dense *w, int64_t begin, int64_t end, const float *x,
                             int64_t rows, float *y, float *scratch)
{
    float sums[4 * OQ_DENSE_COLUMNS];
    for (int64_t n = begin; n < end; n += OQ_DENSE_COLUMNS) {
        const int count = end - n < OQ_DENSE_COLUMNS ? (int)(end - n) : OQ_DENSE_COLUMNS;
        const columns c = columns_at(w, n, count);
        int64_t row = 0;
        if (rows >= 4) widen_columns(kind, &c, w->in, scratch);
        for (; row + 4 <= rows; row += 4) {
            dense_tile(4, scratch, w->in, x + row * w->in, sums);
            for (int r = 0; r < 4; r++)
                store_sums(w, sums + r * OQ_DENSE_COLUMNS, n, count, y + (row + r) * w->out);
        }
        for (; row < rows; row++) {
            dense_single(kind, &c, w->in, x + row * w->in, sums);
            store_sums(w, sums, n, count, y + row * w->out);
        }
    }
}

LANES_TARGET static void dense(const oq_dense *w, int64_t begin, int64_t end, const float *x, int64_t rows,
                               float *y, float *scratch)
{
    switch (w->kind) {
    case OQ_DENSE_FLOAT: dense_kind(OQ_DENSE_FLOAT, w, begin, end, x, rows, y, scratch); break;
    case OQ_DENSE_HALF: dense_kind(OQ_DENSE_HALF, w, begin, end, x, rows, y, scratch); break;
    case OQ_DENSE_BFLOAT: dense_kind(OQ_DENSE_BFLOAT, w, begin, end, x, rows, y, scratch); break;
    case OQ_DENSE_BYTES:
    case OQ_DENSE_NIBBLES: break; /* a packed linear's work: see model.c */
    }
}

/* ---- reading the cache --------------------------------------------------- */

/* (code - zero) scale: the very float that fake quantization gives. */
LANES_INLINE lanes dequantize(lanes codes, lanes zero, lanes scale)
{
    return lanes_multiply(lanes_subtract(codes, zero), scale);
}

LANES_TARGET static void keys(const oq_cache_format *format, const uint8_t *block, const float *scales,
                              const uint8_t *zeros, float *panel)
{
    const int64_t dims = format->dims, half = dims / 2;
    if (format->store == OQ_STORE_FLOAT) {
        memcpy(panel, block, (size_t)dims * LANES * sizeof *panel);
    } else if (format->store == OQ_STORE_HALF) {
        for (int64_t i = 0; i < dims; i++)
            lanes_store(panel + i * LANES, lanes_half((const uint16_t *)(const void *)block + i * LANES));
    } else {
        const lanes scale = lanes_load(scales), zero = lanes_bytes(zeros);
        if (format->store == OQ_STORE_BYTES)
            for (int64_t i = 0; i < dims; i++)
                lanes_store(panel + i * LANES, dequantize(lanes_bytes(block + i * LANES), zero, scale));
        else
            for (int64_t i = 0; i < half; i++) {
                lanes_store(panel + i * LANES, dequantize(lanes_low(block + i * LANES), zero, scale));
                lanes_store(panel + (half + i) * LANES, dequantize(lanes_high(block + i * LANES), zero, scale));
            }
    }
}

LANES_TARGET static void values(const oq_cache_format *format, const uint8_t *from, const float *scales,
                                const uint8_t *zeros, int64_t tokens, float *panel)
{
    const int64_t dims = format->dims, half = dims / 2;
    for (int64_t t = 0; t < tokens; t++, from += format->block_bytes, panel += dims) {
        if (format->store == OQ_STORE_FLOAT) {
            memcpy(panel, from, (size_t)dims * sizeof *panel);
        } else if (format->store == OQ_STORE_HALF) {
            for (int64_t i = 0; i < dims; i += LANES)
                lanes_store(panel + i, lanes_half((const uint16_t *)(const void *)from + i));
        } else {
            const lanes scale = lanes_all(scales[t]), zero = lanes_all((float)zeros[t]);
            if (format->store == OQ_STORE_BYTES)
                for (int64_t i = 0; i < dims; i += LANES)
                    lanes_store(panel + i, dequantize(lanes_bytes(from + i), zero, scale));
            else
                for (int64_t i = 0; i < half; i += LANES) {
                    lanes_store(panel + i, dequantize(lanes_low(from + i), zero, scale));
                    lanes_store(panel + half + i, dequantize(lanes_high(from + i), zero, scale));
                }
        }
    }
}

/* ---- attention ------------------------------------------------------------ */

LANES_INLINE void score_tile(int rows, const float *q, int64_t d, const float *panel, float alpha, float *s,
                             int64_t stride)
{
    lanes sum[TILE_ROWS];
    UNROLL for (int r = 0; r < rows; r++) sum[r] = lanes_all(0);
    for (int64_t i = 0; i < d; i++) {
        const lanes key = lanes_load(panel + i * LANES);
        UNROLL for (int r = 0; r < rows; r++) sum[r] = lanes_multiply_add(lanes_all(q[r * d + i]), key, sum[r]);
    }
    UNROLL for (int r = 0; r < rows; r++) lanes_store(s + r * stride, lanes_multiply(sum[r], lanes_all(alpha)));
}

LANES_TARGET static void scores(const float *q, int64_t rows, int64_t d, const float *panel, float alpha, float *s,
                                int64_t stride)
{
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS, q += TILE_ROWS * d, s += TILE_ROWS * stride)
        score_tile(TILE_ROWS, q, d, panel, alpha, s, stride);
    for (; rows >= 3; rows -= 3, q += 3 * d, s += 3 * stride) score_tile(3, q, d, panel, alpha, s, stride);
    for (; rows >= 1; rows -= 1, q += d, s += stride) score_tile(1, q, d, panel, alpha, s, stride);
}

/* `vectors` registers of each row, from column `at` on; both counts are constants. */
LANES_INLINE void weigh_tile(int rows, int vectors, const float *p, int64_t stride, const float *panel,
                             int64_t tokens, int64_t dims, float *out)
{
    lanes sum[TILE_ROWS][TILE_VECTORS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++) sum[r][v] =
        lanes_load(out + r * dims + v * LANES);
    for (int64_t t = 0; t < tokens; t++) {
        lanes value[TILE_VECTORS];
        UNROLL for (int v = 0; v < vectors; v++) value[v] = lanes_load(panel + t * dims + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
        {
            const lanes weight = lanes_all(p[r * stride + t]);
            UNROLL for (int v = 0; v < vectors; v++) sum[r][v] = lanes_multiply_add(weight, value[v], sum[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vectors; v++)
        lanes_store(out + r * dims + v * LANES, sum[r][v]);
}

LANES_INLINE void weigh_rows(int rows, const float *p, int64_t stride, const float *panel, int64_t tokens,
                             int64_t dims, float *out)
{
    int64_t at = 0;
    for (; at + TILE_VECTORS * LANES <= dims; at += TILE_VECTORS * LANES)
        weigh_tile(rows, TILE_VECTORS, p, stride, panel + at, tokens, dims, out + at);
    for (; at < dims; at += LANES) weigh_tile(rows, 1, p, stride, panel + at, tokens, dims, out + at);
}

LANES_TARGET static void weigh(const float *p, int64_t stride, int64_t rows, const float *panel, int64_t tokens,
                               int64_t dims, float *out)
{
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS, p += TILE_ROWS * stride, out += TILE_ROWS * dims)
        weigh_rows(TILE_ROWS, p, stride, panel, tokens, dims, out);
    for (; rows >= 3; rows -= 3, p += 3 * stride, out += 3 * dims)
        weigh_rows(3, p, stride, panel, tokens, dims, out);
    for (; rows >= 1; rows -= 1, p += stride, out += dims) weigh_rows(1, p, stride, panel, tokens, dims, out);
}
