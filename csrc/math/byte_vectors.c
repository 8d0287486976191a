#include "math/byte_vectors.h"

#include "base/parallel.h"
#include "base/size.h"
#include "math/bf16.h"
#include "math/transpose_bytes.h"

enum {
    LANES = 32, /* extremes a row keeps apart */
    WIDE = 256, /* columns at a time, so that stretches of rows are long enough to be fetched ahead */
    TALL = 64,  /* and rows: transposed they are a line of the cache */
};

oq_code oq_byte_vectors_create(oq_context *context, int64_t vectors, int64_t length, uint8_t zero,
                               oq_byte_vectors *to)
{
    to->zero = zero;
    to->by_rows = false;
    OQ_NEW(context, to->codes, vectors * length);
    OQ_NEW(context, to->scale, vectors);
    return OQ_OK;
}

/* ---- numbers ------------------------------------------------------------------ */

static const oq_real most = 127;

/* |x|, infinity where that is no number. */
OQ_INLINE oq_real size_of(oq_real x) { return oq_min(oq_fabs(x), (oq_real)INFINITY); }

/* What a vector's elements are multiplied by to be codes, and *scale, what codes are. */
OQ_INLINE oq_real per_step(oq_real peak, oq_real *scale)
{
    const oq_real step = peak / most;
    *scale = peak < (oq_real)INFINITY ? step : (oq_real)NAN;
    return step >= OQ_REAL_MIN_NORMAL && peak < (oq_real)INFINITY ? 1 / step : 0;
}

/* Anything that is not finite becomes some code too. */
OQ_INLINE uint8_t code_of(oq_real x, uint8_t zero)
{
    return (uint8_t)((int32_t)oq_rint(oq_min(oq_max(x, -most), most)) + zero);
}

/* ---- rows ----------------------------------------------------------------------- */

typedef struct {
    const oq_real *x, *factors;
    const oq_byte_vectors *to;
    int64_t width;
} row_job;

OQ_INLINE oq_real scaled(const oq_real *x, const oq_real *factors, int64_t i)
{
    return factors ? x[i] * factors[i] : x[i];
}

/* Extremes depend on no order: lanes apart, as many as hide latency. */
OQ_INLINE oq_real peak_of(const oq_real *x, const oq_real *factors, int64_t width)
{
    oq_real peaks[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        for (int j = 0; j < LANES; j++) peaks[j] = oq_max(size_of(scaled(x, factors, i + j)), peaks[j]);
    for (int j = 0; j < width - i; j++) peaks[j] = oq_max(size_of(scaled(x, factors, i + j)), peaks[j]);
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) peaks[j] = oq_max(peaks[j + half], peaks[j]);
    return peaks[0];
}

OQ_INLINE void round_vector(const oq_real *restrict x, const oq_real *restrict factors, int64_t width, uint8_t zero,
                            oq_real *restrict scale, uint8_t *restrict codes)
{
    const oq_real inverse = per_step(peak_of(x, factors, width), scale);
    for (int64_t i = 0; i < width; i++) codes[i] = code_of(scaled(x, factors, i) * inverse, zero);
}

/* The loops are made twice: with factors and without. */
OQ_VECTORIZED static void one_row(const row_job *j, int64_t row)
{
    const oq_byte_vectors *to = j->to;
    const int64_t at = row * j->width;
    if (j->factors)
        round_vector(j->x + at, j->factors, j->width, to->zero, to->scale + row, to->codes + at);
    else
        round_vector(j->x + at, NULL, j->width, to->zero, to->scale + row, to->codes + at);
}

static void run_row(void *user, int64_t row, int worker)
{
    (void)worker;
    one_row(user, row);
}

void oq_bytes_of_rows(const oq_context *context, const oq_real *x, const oq_real *factors, int64_t rows, int64_t width,
                      const oq_byte_vectors *to)
{
    const row_job j = {x, factors, to, width};
    oq_parallel_for(context->threads, rows, run_row, (void *)&j);
}

/* ---- columns ---------------------------------------------------------------------- */

typedef struct {
    const oq_byte_source *x;
    const oq_real *factors;
    const oq_byte_vectors *to;
} column_job;

OQ_INLINE oq_real at(const oq_byte_source *x, int64_t i, const bool real)
{
    return real ? x->real[i] : (oq_real)oq_float_of_bf16(x->half[i]);
}

/* Of a strip of columns, row by row: peaks [columns] of what its factor makes of a row; its codes. */
OQ_INLINE void raise_peaks(const oq_byte_source *x, int64_t from, int64_t columns, oq_real factor,
                           oq_real *restrict peaks, const bool real)
{
    for (int64_t i = 0; i < columns; i++) peaks[i] = oq_max(size_of(at(x, from + i, real) * factor), peaks[i]);
}

OQ_INLINE void round_row(const oq_byte_source *x, int64_t from, int64_t columns, oq_real factor, uint8_t zero,
                         const oq_real *restrict inverse, uint8_t *restrict codes, const bool real)
{
    for (int64_t i = 0; i < columns; i++) codes[i] = code_of(at(x, from + i, real) * factor * inverse[i], zero);
}

OQ_INLINE void strip_of(const column_job *j, int64_t column, int64_t columns, const bool real)
{
    const oq_byte_source x = *j->x;
    oq_real steps[WIDE] = {0};
    uint8_t tile[TALL * WIDE];
    for (int64_t r = 0; r < x.rows; r++)
        raise_peaks(&x, r * x.width + column, columns, j->factors ? j->factors[r] : 1, steps, real);
    for (int64_t i = 0; i < columns; i++) steps[i] = per_step(steps[i], &j->to->scale[column + i]);
    for (int64_t row = 0; row < x.rows; row += TALL) {
        const int64_t rows = oq_least(TALL, x.rows - row), ld = j->to->by_rows ? x.width : WIDE;
        uint8_t *codes = j->to->by_rows ? j->to->codes + row * x.width + column : tile;
        for (int64_t r = 0; r < rows; r++)
            round_row(&x, (row + r) * x.width + column, columns, j->factors ? j->factors[row + r] : 1, j->to->zero,
                      steps, codes + r * ld, real);
        if (!j->to->by_rows)
            oq_transpose_few_bytes(tile, WIDE, rows, columns, 0, j->to->codes + column * x.rows + row, x.rows);
    }
}

OQ_VECTORIZED static void real_strip(const column_job *j, int64_t column, int64_t columns)
{
    strip_of(j, column, columns, true);
}

OQ_VECTORIZED static void half_strip(const column_job *j, int64_t column, int64_t columns)
{
    strip_of(j, column, columns, false);
}

static void run_strip(void *user, int64_t item, int worker)
{
    const column_job *j = user;
    const int64_t column = item * WIDE, columns = oq_least(WIDE, j->x->width - column);
    (void)worker;
    if (j->x->real)
        real_strip(j, column, columns);
    else
        half_strip(j, column, columns);
}

void oq_bytes_of_columns(const oq_context *context, const oq_byte_source *x, const oq_real *factors,
                         const oq_byte_vectors *to)
{
    const column_job j = {x, factors, to};
    oq_parallel_for(context->threads, oq_pieces(x->width, WIDE), run_strip, (void *)&j);
}

/* ---- sums -------------------------------------------------------------------------- */

typedef struct {
    const int8_t *bytes;
    int32_t *sums;
    int64_t length;
} total;

OQ_VECTORIZED static void sum_vector(const total *t, int64_t vector)
{
    const int8_t *bytes = t->bytes + vector * t->length;
    int32_t sum = 0;
    for (int64_t i = 0; i < t->length; i++) sum += bytes[i];
    t->sums[vector] = sum;
}

static void run_sum(void *user, int64_t vector, int worker)
{
    (void)worker;
    sum_vector(user, vector);
}

void oq_sum_bytes(const oq_context *context, const int8_t *bytes, int64_t vectors, int64_t length, int32_t *sums)
{
    total t = {bytes, sums, length};
    oq_parallel_for(context->threads, vectors, run_sum, &t);
}
