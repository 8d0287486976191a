#include "math/vector.h"

#include "math/elementary.h"

OQ_VECTORIZED void oq_add(oq_real *to, const oq_real *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) to[i] += x[i];
}

OQ_VECTORIZED void oq_scale(oq_real *x, oq_real factor, int64_t count)
{
    for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

OQ_VECTORIZED void oq_add_to_rows(oq_real *rows, const oq_real *bias, int64_t count, int64_t width)
{
    for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < width; i++) rows[r * width + i] += bias[i];
}

OQ_VECTORIZED static void cap_all(oq_real cap, oq_real *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) x[i] = cap * oq_tanh(x[i] / cap);
}

void oq_cap(double cap, oq_real *x, int64_t count)
{
    if (cap != 0) cap_all((oq_real)cap, x, count);
}

OQ_VECTORIZED static void sum_rows(const oq_real *x, double *sums, int64_t rows, int64_t width)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) sums[i] += (double)x[r * width + i];
}

oq_code oq_column_sums(oq_context *context, const oq_real *x, oq_real *sums, int64_t rows, int64_t width)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    double *exact;
    OQ_NEW_ZERO(context, exact, width);
    sum_rows(x, exact, rows, width);
    for (int64_t i = 0; i < width; i++) sums[i] += (oq_real)exact[i];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* x - x is 0 for finite x alone; whole strips are tested at once. */
OQ_VECTORIZED int64_t oq_find_not_finite(const oq_real *x, int64_t count)
{
    enum { STRIP = 1024 };
    for (int64_t begin = 0; begin < count; begin += STRIP) {
        const int64_t end = begin + STRIP < count ? begin + STRIP : count;
        int bad = 0;
        for (int64_t i = begin; i < end; i++) bad |= !(x[i] - x[i] == 0);
        if (!bad) continue;
        for (int64_t i = begin; i < end; i++)
            if (!(x[i] - x[i] == 0)) return i;
    }
    return -1;
}
