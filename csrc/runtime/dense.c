#include "runtime/dense.h"

#ifndef OQ_DOUBLE

#include <stdatomic.h>

#include "base/parallel.h"
#include "math/bf16.h"
#include "runtime/half.h"
#include "runtime/lanes_kernels.h"

enum { OUTPUTS = 128 }; /* an item */

typedef struct {
    const oq_lanes_kernels *kernels;
    const oq_dense *w;
    const float *x;
    int64_t rows, padded;
    float *y, *scratch; /* [workers, 4, padded] */
} job;

static void run_item(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * OUTPUTS, end = begin + OUTPUTS < j->w->out ? begin + OUTPUTS : j->w->out;
    j->kernels->dense(j->w, begin, end, j->x, j->rows, j->y, j->scratch + worker * OQ_DENSE_COLUMNS * j->padded);
}

oq_code oq_dense_run(oq_context *context, const oq_lanes_kernels *kernels, const oq_dense *w, const float *x,
                     int64_t rows, float *y)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.kernels = kernels, .w = w, .x = x, .rows = rows, .padded = (w->in + 15) / 16 * 16, .y = y};
    OQ_NEW(context, j.scratch, context->threads * OQ_DENSE_COLUMNS * j.padded);
    oq_parallel_for(context->threads, (w->out + OUTPUTS - 1) / OUTPUTS, run_item, &j);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

void oq_dense_row(const oq_dense *w, int64_t index, float *values)
{
    const int64_t in = w->in, groups = (in + OQ_DENSE_GROUP - 1) / OQ_DENSE_GROUP;
    for (int64_t i = 0; i < in; i++) {
        const int64_t at = index * in + i;
        switch (w->kind) {
        case OQ_DENSE_FLOAT: values[i] = ((const float *)w->values)[at]; break;
        case OQ_DENSE_HALF: values[i] = oq_float_of_half(((const uint16_t *)w->values)[at]); break;
        case OQ_DENSE_BFLOAT: values[i] = oq_float_of_bf16(((const uint16_t *)w->values)[at]); break;
        case OQ_DENSE_BYTES:
        case OQ_DENSE_NIBBLES:
            values[i] = (float)oq_dense_code(w, index, i) *
                        oq_float_of_half(w->scales[index * groups + i / OQ_DENSE_GROUP]);
            break;
        }
    }
}

#else
typedef int oq_dense_is_float_only;
#endif
