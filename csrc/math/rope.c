#include "math/rope.h"

#include "base/parallel.h"

#define ROW_CHUNK 32

typedef struct {
    oq_rope rope;
    oq_real *x;
    oq_real direction; /* +1 forward, -1 back */
    int64_t tokens, heads, head_dim;
} job;

OQ_VECTORIZED static void rotate_rows(const job *j, int64_t begin, int64_t end)
{
    const int64_t half = j->rope.dims / 2;
    for (int64_t t = begin; t < end; t++) {
        const oq_real *cosine = j->rope.cos + t * half, *sine = j->rope.sin + t * half;
        for (int64_t h = 0; h < j->heads; h++) {
            oq_real *low = j->x + (t * j->heads + h) * j->head_dim, *high = low + half;
            for (int64_t i = 0; i < half; i++) {
                const oq_real a = low[i], b = high[i], s = j->direction * sine[i];
                low[i] = a * cosine[i] - b * s;
                high[i] = b * cosine[i] + a * s;
            }
        }
    }
}

static void rotate_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * ROW_CHUNK, end = begin + ROW_CHUNK;
    (void)worker;
    rotate_rows(j, begin, end < j->tokens ? end : j->tokens);
}

static void rotate(const oq_context *context, const job *j)
{
    oq_parallel_for(context->threads, (j->tokens + ROW_CHUNK - 1) / ROW_CHUNK, rotate_chunk, (void *)j);
}

void oq_rope_forward(const oq_context *context, oq_rope rope, oq_real *x, int64_t tokens, int64_t heads,
                     int64_t head_dim)
{
    const job j = {rope, x, 1, tokens, heads, head_dim};
    rotate(context, &j);
}

void oq_rope_backward(const oq_context *context, oq_rope rope, oq_real *dx, int64_t tokens, int64_t heads,
                      int64_t head_dim)
{
    const job j = {rope, dx, -1, tokens, heads, head_dim};
    rotate(context, &j);
}
