#include "calibrate/sinks.h"

#include <stdlib.h>
#include <string.h>

#include "math/loss.h"

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

oq_code oq_find_sinks(oq_context *context, const oq_real *x, int64_t T, int64_t H, bool *sink, int64_t *count)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    double *energy, *sorted;
    OQ_NEW(context, energy, T);
    OQ_NEW(context, sorted, T);
    for (int64_t t = 0; t < T; t++) energy[t] = oq_token_energy(x + t * H, H);
    memcpy(sorted, energy, sizeof *sorted * (size_t)T);
    qsort(sorted, (size_t)T, sizeof *sorted, by_size);
    *count = 0;
    for (int64_t t = 0; t < T; t++) *count += sink[t] = energy[t] > OQ_MASSIVE * sorted[T / 2];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
