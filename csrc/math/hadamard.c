#include "math/hadamard.h"

#include "base/parallel.h"

#define ROW_CHUNK 8
#define LANES 16

typedef struct {
    oq_real *x, *scratch;      /* scratch [threads, odd, LANES] */
    const oq_real *cas;        /* [odd] cos + sin of 2 pi i / m, divided by sqrt(n) */
    int64_t rows, odd, length; /* length = 2^k stride: what one row of C_m multiplies */
    int64_t stride;
    oq_real scale;
} job;

/* The butterflies of neighbours 1, 2, 4 and 8 on 16 values: short loops of known length become shuffles. */
OQ_INLINE void butterfly(oq_real *x, int apart)
{
    oq_real swapped[LANES];
    for (int i = 0; i < LANES; i++) swapped[i] = x[i ^ apart];
    for (int i = 0; i < LANES; i++) x[i] = swapped[i] + (i & apart ? -x[i] : x[i]);
}

/* x [length] times H_2^k, unscaled. */
OQ_INLINE void walsh(oq_real *x, int64_t length, int64_t stride)
{
    int64_t apart = stride;
    if (stride == 1 && length >= LANES) {
        for (int64_t i = 0; i < length; i += LANES) {
            butterfly(x + i, 1);
            butterfly(x + i, 2);
            butterfly(x + i, 4);
            butterfly(x + i, 8);
        }
        apart = LANES;
    }
    for (; apart < length; apart *= 2)
        for (int64_t i = 0; i < length; i += 2 * apart)
            for (int64_t j = i; j < i + apart; j++) {
                const oq_real a = x[j], b = x[j + apart];
                x[j] = a + b;
                x[j + apart] = a - b;
            }
}

/* x [odd, length] = C_m x / sqrt(n), some columns at a time. */
OQ_INLINE void hartley(const job *j, oq_real *x, oq_real *from)
{
    const int64_t m = j->odd;
    for (int64_t begin = 0; begin < j->length; begin += LANES) {
        const int64_t lanes = j->length - begin < LANES ? j->length - begin : LANES;
        for (int64_t r = 0; r < m; r++)
            for (int64_t i = 0; i < LANES; i++)
                from[r * LANES + i] = i < lanes ? x[r * j->length + begin + i] : 0;
        for (int64_t r = 0; r < m; r++) {
            oq_real sum[LANES] = {0};
            int64_t angle = 0; /* r c modulo m */
            for (int64_t c = 0; c < m; c++) {
                for (int i = 0; i < LANES; i++) sum[i] += j->cas[angle] * from[c * LANES + i];
                angle += r;
                if (angle >= m) angle -= m;
            }
            for (int64_t i = 0; i < lanes; i++) x[r * j->length + begin + i] = sum[i];
        }
    }
}

OQ_VECTORIZED static void rotate_rows(const job *j, int64_t begin, int64_t end, int worker)
{
    const int64_t width = j->odd * j->length;
    for (int64_t row = begin; row < end; row++) {
        oq_real *x = j->x + row * width;
        for (int64_t r = 0; r < j->odd; r++) walsh(x + r * j->length, j->length, j->stride);
        if (j->odd > 1)
            hartley(j, x, j->scratch + worker * j->odd * LANES);
        else
            for (int64_t i = 0; i < width; i++) x[i] *= j->scale;
    }
}

static void rotate_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * ROW_CHUNK, end = begin + ROW_CHUNK;
    rotate_rows(j, begin, end < j->rows ? end : j->rows, worker);
}

oq_code oq_hadamard(oq_context *context, oq_real *x, int64_t rows, int64_t n, int64_t stride)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    const double turn = 6.283185307179586, scale = 1 / sqrt((double)n);
    oq_real *cas;
    job j = {.x = x, .rows = rows, .odd = n, .length = stride, .stride = stride, .scale = (oq_real)scale};
    for (; j.odd % 2 == 0; j.odd /= 2) j.length *= 2;
    OQ_NEW(context, cas, j.odd);
    OQ_NEW(context, j.scratch, context->threads * j.odd * LANES);
    for (int64_t i = 0; i < j.odd; i++) {
        const double angle = turn * (double)i / (double)j.odd;
        cas[i] = (oq_real)(scale * (cos(angle) + sin(angle)));
    }
    j.cas = cas;
    oq_parallel_for(context->threads, (rows + ROW_CHUNK - 1) / ROW_CHUNK, rotate_chunk, &j);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
