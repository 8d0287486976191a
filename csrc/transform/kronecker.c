#include "transform/kronecker.h"

#include <string.h>

#include "base/parallel.h"
#include "math/gemm.h"

#define ROW_CHUNK 8

int64_t oq_kronecker_left(int64_t n)
{
    int64_t a = 1;
    for (int64_t i = 2; i * i <= n; i++)
        if (n % i == 0) a = i;
    return a;
}

/* Y = P X Q row by row; either factor NULL: the identity. */
typedef struct {
    int64_t a, b, rows;
    const oq_real *p, *q; /* [a, a], [b, b] */
    const oq_real *x;
    oq_real *y, *scratch; /* scratch [threads, a b] */
} job;

/* c [m, n] = left [m, k] right [k, n], in the order of k. */
OQ_INLINE void product(const oq_real *left, const oq_real *right, oq_real *c, int64_t m, int64_t k, int64_t n)
{
    memset(c, 0, sizeof *c * (size_t)(m * n));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < k; j++) {
            const oq_real factor = left[i * k + j];
            const oq_real *from = right + j * n;
            oq_real *to = c + i * n;
            for (int64_t l = 0; l < n; l++) to[l] += factor * from[l];
        }
}

OQ_VECTORIZED static void map_rows(const job *j, int64_t begin, int64_t end, oq_real *u)
{
    const int64_t a = j->a, b = j->b, n = a * b;
    for (int64_t row = begin; row < end; row++) {
        const oq_real *x = j->x + row * n;
        oq_real *y = j->y + row * n;
        if (j->p) product(j->p, x, j->q ? u : y, a, a, b);
        if (j->q) product(j->p ? u : x, j->q, y, a, b, b);
    }
}

static void map_chunk(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t begin = item * ROW_CHUNK, end = begin + ROW_CHUNK;
    map_rows(j, begin, end < j->rows ? end : j->rows, j->scratch + worker * j->a * j->b);
}

static oq_code apply(oq_context *context, job j)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    OQ_NEW(context, j.scratch, context->threads * j.a * j.b);
    oq_parallel_for(context->threads, (j.rows + ROW_CHUNK - 1) / ROW_CHUNK, map_chunk, &j);
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code transpose(oq_context *context, const oq_real *x, int64_t n, const oq_real **transposed)
{
    oq_real *to;
    OQ_NEW(context, to, n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) to[i * n + j] = x[j * n + i];
    *transposed = to;
    return OQ_OK;
}

/* P and Q of Y = P X Q and, for the way back, of X' = P^T Y Q^T. */
static oq_code sides(oq_context *context, const oq_kronecker *k, bool back, const oq_real **p, const oq_real **q)
{
    *p = k->left;
    *q = k->right;
    return k->transposed != back ? transpose(context, k->right, k->b, q) : transpose(context, k->left, k->a, p);
}

oq_code oq_kronecker_forward(oq_context *context, const oq_kronecker *k, const oq_real *x, oq_real *y,
                             int64_t rows)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.a = k->a, .b = k->b, .rows = rows, .x = x, .y = y};
    OQ_TRY(sides(context, k, false, &j.p, &j.q));
    OQ_TRY(apply(context, j));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* to [a, rows b]: the rows of every X side by side. */
static void gather(const oq_real *x, oq_real *to, int64_t rows, int64_t a, int64_t b)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < a; i++)
            memcpy(to + (i * rows + row) * b, x + (row * a + i) * b, sizeof *x * (size_t)b);
}

/* c [n, n] += first^T second over m rows, or, beside each other, first second^T over m columns. */
static oq_code outer(oq_context *context, bool columns, const oq_real *first, const oq_real *second, oq_real *c,
                     int64_t n, int64_t m)
{
    const int64_t stride = columns ? m : n;
    return oq_gemm(context, &(oq_gemm_args){.transpose_a = !columns,
                                            .transpose_b = columns,
                                            .m = n,
                                            .n = n,
                                            .k = m,
                                            .alpha = 1,
                                            .beta = 1,
                                            .a = first,
                                            .lda = stride,
                                            .b = second,
                                            .ldb = stride,
                                            .c = c,
                                            .ldc = n});
}

/* With U = P X and dU = dY Q^T:  dP += sum dU X^T,  dQ += sum U^T dY,  dX = P^T dU. */
oq_code oq_kronecker_backward(oq_context *context, const oq_kronecker *k, const oq_real *x, const oq_real *dy,
                              oq_real *dleft, oq_real *dright, oq_real *dx, int64_t rows)
{
    const int64_t a = k->a, b = k->b, count = rows * a * b;
    const oq_mark mark = oq_arena_mark(context->arena);
    const oq_real *p, *q, *p_back, *q_back;
    oq_real *u, *first, *second;
    OQ_TRY(sides(context, k, false, &p, &q));
    OQ_TRY(sides(context, k, true, &p_back, &q_back));
    OQ_NEW(context, u, count);
    OQ_NEW(context, first, count);
    OQ_NEW(context, second, count);
    if (dright) {
        OQ_TRY(apply(context, (job){.a = a, .b = b, .rows = rows, .p = p, .x = x, .y = u}));
        OQ_TRY(outer(context, false, k->transposed ? dy : u, k->transposed ? u : dy, dright, b, rows * a));
    }
    OQ_TRY(apply(context, (job){.a = a, .b = b, .rows = rows, .q = q_back, .x = dy, .y = u}));
    if (dleft) {
        gather(u, first, rows, a, b);
        gather(x, second, rows, a, b);
        OQ_TRY(outer(context, true, k->transposed ? first : second, k->transposed ? second : first, dleft, a,
                     rows * b));
    }
    if (dx) OQ_TRY(apply(context, (job){.a = a, .b = b, .rows = rows, .p = p_back, .x = u, .y = dx}));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
