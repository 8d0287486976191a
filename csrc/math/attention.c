#include "math/attention.h"

#include <stdatomic.h>

#include "base/parallel.h"
#include "base/size.h"
#include "math/bf16.h"
#include "math/elementary.h"
#include "math/gemm.h"
#include "math/vector.h"

#define TILE 128 /* query rows at a time */
#define LANES 16

/* Rows of [T, heads d] or of a tile; half is NULL where products take floats. */
typedef struct {
    const oq_real *real;
    const uint16_t *half;
    int64_t ld;
} operand;

typedef struct {
    oq_attention_shape shape;
    oq_real scale; /* of the products of q and k */
    operand q, k, v, dout;
    const oq_real *saved_out, *saved_log_sum;
    oq_real *out, *log_sum, *dq;
    oq_real *dk_heads, *dv_heads; /* [n, T, d], one a query head, summed over groups afterwards */
    oq_real *scratch;             /* [workers, 2, TILE, T] */
    uint16_t *half_scratch;       /* the same, rounded */
    bool in_parts;                /* products of floats, see context.h */
    atomic_int failure;
} job;

/* One head's tokens [begin, begin + rows), queries from `query` on, against its keys [0, begin + rows). */
typedef struct {
    int64_t head, kv_head, begin, query, rows, keys;
    oq_real slope;   /* of ALiBi */
    oq_real *p, *dp; /* [rows, keys] */
    uint16_t *p_half, *dp_half;
} tile;

static tile make_tile(const job *j, int64_t head, int64_t begin, int worker)
{
    const int64_t T = j->shape.tokens, rows = T - begin < TILE ? T - begin : TILE, at = worker * 2 * TILE * T;
    return (tile){.head = head,
                  .kv_head = head / (j->shape.heads / j->shape.kv_heads),
                  .begin = begin,
                  .query = begin - j->shape.first,
                  .rows = rows,
                  .keys = begin + rows,
                  .slope = (oq_real)oq_alibi_slope(&j->shape.rule, head, j->shape.heads),
                  .p = j->scratch + at,
                  .dp = j->scratch + at + TILE * T,
                  .p_half = OQ_AT(j->half_scratch, at),
                  .dp_half = j->half_scratch ? j->half_scratch + at + TILE * T : NULL};
}

/* ---- products of floats, or of their halves -------------------------------- */

/* A head's columns of x from a row on. */
static operand part_of(operand x, int64_t row, int64_t head, int64_t head_dim)
{
    const int64_t at = row * x.ld + head * head_dim;
    return (operand){x.real + at, OQ_AT(x.half, at), x.ld};
}

/* A tile's p or dp, rounded where products take halves. */
static operand rounded(const tile *t, const oq_real *x, uint16_t *half)
{
    if (half) oq_bf16_round(x, half, t->rows * t->keys);
    return (operand){x, half, t->keys};
}

typedef struct {
    bool transpose_a, transpose_b, accumulate;
    int64_t m, n, k;
    oq_real alpha;
    operand a, b;
    oq_real *c;
    int64_t ldc;
} product;

static oq_code multiply_floats(const product *p, bool in_parts)
{
    return oq_gemm_serial(&(oq_gemm_args){.transpose_a = p->transpose_a,
                                          .transpose_b = p->transpose_b,
                                          .in_parts = in_parts,
                                          .m = p->m,
                                          .n = p->n,
                                          .k = p->k,
                                          .alpha = p->alpha,
                                          .beta = p->accumulate ? 1 : 0,
                                          .a = p->a.real,
                                          .lda = p->a.ld,
                                          .b = p->b.real,
                                          .ldb = p->b.ld,
                                          .c = p->c,
                                          .ldc = p->ldc});
}

/* What is scaled afterwards is [m, n] without gaps. */
static oq_code multiply_halves(const product *p)
{
    OQ_TRY(oq_bf16_gemm_serial(&(oq_bf16_gemm_args){.transpose_a = p->transpose_a,
                                                    .transpose_b = p->transpose_b,
                                                    .accumulate = p->accumulate,
                                                    .m = p->m,
                                                    .n = p->n,
                                                    .k = p->k,
                                                    .a = p->a.half,
                                                    .lda = p->a.ld,
                                                    .b = p->b.half,
                                                    .ldb = p->b.ld,
                                                    .c = p->c,
                                                    .ldc = p->ldc}));
    if (p->alpha != 1) oq_scale(p->c, p->alpha, p->m * p->n);
    return OQ_OK;
}

static void multiply(job *j, product p)
{
    const oq_code code = p.a.half ? multiply_halves(&p) : multiply_floats(&p, j->in_parts);
    if (code != OQ_OK) atomic_store(&j->failure, (int)code);
}

/* out [rows, keys] = alpha * x[tile rows] . y[keys]^T, x of the query heads and y of the key/value heads. */
static void scores(job *j, const tile *t, operand x, operand y, oq_real alpha, oq_real *out)
{
    const int64_t d = j->shape.head_dim;
    multiply(j, (product){.transpose_b = true,
                             .m = t->rows,
                             .n = t->keys,
                             .k = d,
                             .alpha = alpha,
                             .a = part_of(x, t->query, t->head, d),
                             .b = part_of(y, 0, t->kv_head, d),
                             .c = out,
                             .ldc = t->keys});
}

/* out [rows, d], the tile's in [T, n d], = x [rows, keys] . y[keys]. */
static void mix(job *j, const tile *t, operand x, operand y, oq_real *out)
{
    const int64_t d = j->shape.head_dim, width = j->shape.heads * d;
    multiply(j, (product){.m = t->rows,
                             .n = d,
                             .k = t->keys,
                             .alpha = 1,
                             .a = x,
                             .b = part_of(y, 0, t->kv_head, d),
                             .c = out + t->query * width + t->head * d,
                             .ldc = width});
}

/* out [keys, d], the head's in [n, T, d], += x [rows, keys]^T . y[tile rows]. */
static void collect(job *j, const tile *t, operand x, operand y, oq_real *out)
{
    const int64_t d = j->shape.head_dim;
    multiply(j, (product){.transpose_a = true,
                             .accumulate = true,
                             .m = t->keys,
                             .n = d,
                             .k = t->rows,
                             .alpha = 1,
                             .a = x,
                             .b = part_of(y, t->begin, t->head, d),
                             .c = out + t->head * j->shape.tokens * d,
                             .ldc = d});
}

/* ---- forward ---------------------------------------------------------------- */

/* Products become scores, in place; a rule that only scales leaves them as they are. */
OQ_VECTORIZED static void shape_scores(const oq_score_rule *rule, const tile *t)
{
    if (!oq_has_shaped_scores(rule)) return;
    for (int64_t i = 0; i < t->rows; i++) {
        oq_real *row = t->p + i * t->keys, slope;
        for (int64_t c = 0; c <= t->begin + i; c++)
            row[c] = oq_shaped_score(rule, t->slope, t->begin + i - c, row[c], &slope);
    }
}

OQ_INLINE oq_real largest(const oq_real *x, int64_t n)
{
    oq_real tops[LANES];
    int64_t i = 0;
    for (int l = 0; l < LANES; l++) tops[l] = x[0];
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) tops[l] = oq_max(x[i + l], tops[l]);
    for (; i < n; i++) tops[0] = oq_max(x[i], tops[0]);
    for (int l = 1; l < LANES; l++) tops[0] = oq_max(tops[l], tops[0]);
    return tops[0];
}

OQ_INLINE void exp_lanes(oq_real *restrict x, oq_real top, int64_t lanes, oq_real *restrict sums)
{
    for (int64_t l = 0; l < lanes; l++) sums[l] += x[l] = oq_exp(x[l] - top);
}

/* x becomes e^(x - top); returns their sum. */
OQ_INLINE oq_real exponentials(oq_real *x, oq_real top, int64_t n)
{
    oq_real sums[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) exp_lanes(x + i, top, LANES, sums);
    exp_lanes(x + i, top, n - i, sums);
    for (int l = 0; l < LANES; l++) sum += sums[l];
    return sum;
}

/* Causal softmax in place: row i sees keys up to begin + i, from 0 or where its window begins. */
OQ_VECTORIZED static void softmax_tile(const oq_score_rule *rule, const tile *t, oq_real *log_sum)
{
    for (int64_t i = 0; i < t->rows; i++) {
        const int64_t first = oq_first_key(rule, t->begin + i), visible = t->begin + i + 1;
        oq_real *row = t->p + i * t->keys;
        const oq_real top = largest(row + first, visible - first);
        const oq_real sum = exponentials(row + first, top, visible - first);
        for (int64_t c = first; c < visible; c++) row[c] /= sum;
        for (int64_t c = 0; c < first; c++) row[c] = 0;
        for (int64_t c = visible; c < t->keys; c++) row[c] = 0;
        log_sum[t->query + i] = top + (oq_real)log((double)sum);
    }
}

static void forward_head(void *user, int64_t head, int worker)
{
    job *j = user;
    const int64_t queries = j->shape.tokens - j->shape.first;
    for (int64_t begin = j->shape.first; begin < j->shape.tokens; begin += TILE) {
        const tile t = make_tile(j, head, begin, worker);
        scores(j, &t, j->q, j->k, j->scale, t.p);
        shape_scores(&j->shape.rule, &t);
        softmax_tile(&j->shape.rule, &t, j->log_sum + head * queries);
        mix(j, &t, rounded(&t, t.p, t.p_half), j->v, j->out);
    }
}

/* ---- backward --------------------------------------------------------------- */

/* The same as the last loop below where scores are more than products: p enters as products. */
OQ_INLINE void shaped_row_backward(const job *j, const tile *t, int64_t position, oq_real log_sum, oq_real mean,
                                   oq_real *p, oq_real *dp)
{
    for (int64_t c = oq_first_key(&j->shape.rule, position); c <= position; c++) {
        oq_real slope;
        const oq_real score = oq_shaped_score(&j->shape.rule, t->slope, position - c, p[c], &slope);
        p[c] = oq_exp(score - log_sum);
        dp[c] = p[c] * (dp[c] - mean) * j->scale * slope;
    }
}

/* p <- probabilities from products, dp <- gradient of the products: p (dp - <dout, out>) scale. */
OQ_VECTORIZED static void softmax_tile_backward(const job *j, const tile *t)
{
    const int64_t d = j->shape.head_dim, width = j->shape.heads * d;
    const bool shaped = oq_has_shaped_scores(&j->shape.rule);
    for (int64_t i = 0; i < t->rows; i++) {
        const int64_t offset = (t->begin + i) * width + t->head * d, visible = t->begin + i + 1;
        const int64_t first = oq_first_key(&j->shape.rule, t->begin + i);
        const oq_real log_sum = j->saved_log_sum[t->head * j->shape.tokens + t->begin + i];
        oq_real *p = t->p + i * t->keys, *dp = t->dp + i * t->keys;
        double along = 0;
        for (int64_t c = 0; c < d; c++)
            along += (double)j->dout.real[offset + c] * (double)j->saved_out[offset + c];
        const oq_real mean = (oq_real)along;
        if (shaped) shaped_row_backward(j, t, t->begin + i, log_sum, mean, p, dp);
        for (int64_t c = first; !shaped && c < visible; c++) {
            p[c] = oq_exp(p[c] - log_sum);
            dp[c] = p[c] * (dp[c] - mean) * j->scale;
        }
        for (int64_t c = 0; c < first; c++) p[c] = dp[c] = 0;
        for (int64_t c = visible; c < t->keys; c++) p[c] = dp[c] = 0;
    }
}

static void backward_head(void *user, int64_t head, int worker)
{
    job *j = user;
    for (int64_t begin = 0; begin < j->shape.tokens; begin += TILE) {
        const tile t = make_tile(j, head, begin, worker);
        scores(j, &t, j->q, j->k, j->scale, t.p);
        scores(j, &t, j->dout, j->v, 1, t.dp);
        softmax_tile_backward(j, &t);
        const operand p = rounded(&t, t.p, t.p_half), dp = rounded(&t, t.dp, t.dp_half);
        mix(j, &t, dp, j->k, j->dq);
        collect(j, &t, dp, j->q, j->dk_heads);
        collect(j, &t, p, j->dout, j->dv_heads);
    }
}

/* ---- both -------------------------------------------------------------------- */

/* x [rows, heads d] as the products take it. */
static oq_code take(oq_context *context, const job *j, const oq_real *x, int64_t rows, int64_t heads, operand *to)
{
    const int64_t width = heads * j->shape.head_dim, count = rows * width;
    uint16_t *half = NULL;
    if (j->shape.bf16) {
        OQ_NEW(context, half, count);
        oq_bf16_from_real(context, x, half, count);
    }
    *to = (operand){x, half, width};
    return OQ_OK;
}

static oq_code prepare(oq_context *context, job *j, const oq_real *q, const oq_real *k, const oq_real *v)
{
    const int64_t T = j->shape.tokens, scratch = context->threads * 2 * TILE * T;
    j->in_parts = context->in_parts;
    j->scale = (oq_real)oq_score_scale(&j->shape.rule, j->shape.head_dim);
    OQ_TRY(take(context, j, q, T - j->shape.first, j->shape.heads, &j->q));
    OQ_TRY(take(context, j, k, T, j->shape.kv_heads, &j->k));
    OQ_TRY(take(context, j, v, T, j->shape.kv_heads, &j->v));
    OQ_NEW(context, j->scratch, scratch);
    if (!j->shape.bf16) return OQ_OK;
    OQ_NEW(context, j->half_scratch, scratch);
    return OQ_OK;
}

static oq_code outcome(oq_context *context, job *j)
{
    const oq_code code = (oq_code)atomic_load(&j->failure);
    return code == OQ_OK ? OQ_OK : oq_fail(context, code, "a product inside attention failed");
}

/* dkv [T, m d] = sum over the query heads of each group, in order. */
static void sum_groups(const oq_attention_shape *s, const oq_real *heads, oq_real *dkv)
{
    const int64_t T = s->tokens, d = s->head_dim, group = s->heads / s->kv_heads;
    for (int64_t m = 0; m < s->kv_heads; m++)
        for (int64_t t = 0; t < T; t++) {
            oq_real *to = dkv + (t * s->kv_heads + m) * d;
            for (int64_t i = 0; i < d; i++) to[i] = heads[(m * group * T + t) * d + i];
            for (int64_t g = 1; g < group; g++)
                for (int64_t i = 0; i < d; i++) to[i] += heads[((m * group + g) * T + t) * d + i];
        }
}

oq_code oq_attention_forward(oq_context *context, oq_attention_shape shape, const oq_real *q, const oq_real *k,
                             const oq_real *v, oq_real *out, oq_real *log_sum)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.shape = shape, .out = out, .log_sum = log_sum};
    OQ_TRY(prepare(context, &j, q, k, v));
    oq_parallel_for(context->threads, shape.heads, forward_head, &j);
    oq_arena_rewind(context->arena, mark);
    return outcome(context, &j);
}

oq_code oq_attention_backward(oq_context *context, oq_attention_shape shape, const oq_real *q, const oq_real *k,
                              const oq_real *v, const oq_real *out, const oq_real *log_sum, const oq_real *dout,
                              oq_real *dq, oq_real *dk, oq_real *dv)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.shape = shape, .saved_out = out, .saved_log_sum = log_sum, .dq = dq};
    OQ_TRY(prepare(context, &j, q, k, v));
    OQ_TRY(take(context, &j, dout, shape.tokens, shape.heads, &j.dout));
    OQ_NEW_ZERO(context, j.dk_heads, shape.heads * shape.tokens * shape.head_dim);
    OQ_NEW_ZERO(context, j.dv_heads, shape.heads * shape.tokens * shape.head_dim);
    oq_parallel_for(context->threads, shape.heads, backward_head, &j);
    sum_groups(&shape, j.dk_heads, dk);
    sum_groups(&shape, j.dv_heads, dv);
    oq_arena_rewind(context->arena, mark);
    return outcome(context, &j);
}
