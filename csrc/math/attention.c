#include "math/attention.h"

#include <stdatomic.h>

#include "base/parallel.h"
#include "math/elementary.h"
#include "math/gemm.h"

#define TILE 128 /* query rows at a time */
#define LANES 16

typedef struct {
    oq_attention_shape shape;
    oq_real scale; /* of the products of q and k */
    const oq_real *q, *k, *v, *saved_out, *saved_log_sum, *dout;
    oq_real *out, *log_sum, *dq;
    oq_real *dk_heads, *dv_heads; /* [n, T, d], one a query head, summed over groups afterwards */
    oq_real *scratch;             /* [workers, 2, TILE, T] */
    atomic_int failure;
} job;

/* One head's rows [begin, begin + rows) against its keys [0, begin + rows). */
typedef struct {
    int64_t head, kv_head, begin, rows, keys;
    oq_real slope;  /* of ALiBi */
    oq_real *p, *dp; /* [rows, keys] */
} tile;

static tile make_tile(const job *j, int64_t head, int64_t begin, int worker)
{
    const int64_t T = j->shape.tokens, rows = T - begin < TILE ? T - begin : TILE;
    oq_real *scratch = j->scratch + (int64_t)worker * 2 * TILE * T;
    return (tile){.head = head,
                  .kv_head = head / (j->shape.heads / j->shape.kv_heads),
                  .begin = begin,
                  .rows = rows,
                  .keys = begin + rows,
                  .slope = (oq_real)oq_alibi_slope(&j->shape.rule, head, j->shape.heads),
                  .p = scratch,
                  .dp = scratch + TILE * T};
}

static void product(job *j, oq_gemm_args args)
{
    const oq_code code = oq_gemm_serial(&args);
    if (code != OQ_OK) atomic_store(&j->failure, (int)code);
}

/* out [rows, keys] = alpha * x[tile rows] . y[keys]^T, x of the query heads and y of the key/value heads. */
static void scores(job *j, const tile *t, const oq_real *x, const oq_real *y, oq_real alpha, oq_real *out)
{
    const int64_t d = j->shape.head_dim, q_width = j->shape.heads * d, kv_width = j->shape.kv_heads * d;
    product(j, (oq_gemm_args){.transpose_b = true,
                              .m = t->rows,
                              .n = t->keys,
                              .k = d,
                              .alpha = alpha,
                              .beta = 0,
                              .a = x + t->begin * q_width + t->head * d,
                              .lda = q_width,
                              .b = y + t->kv_head * d,
                              .ldb = kv_width,
                              .c = out,
                              .ldc = t->keys});
}

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

/* Causal softmax in place: row i sees keys up to begin + i, from 0 or where its window begins. */
OQ_VECTORIZED static void softmax_tile(const oq_score_rule *rule, const tile *t, oq_real *log_sum)
{
    for (int64_t i = 0; i < t->rows; i++) {
        const int64_t first = oq_first_key(rule, t->begin + i), visible = t->begin + i + 1;
        oq_real *row = t->p + i * t->keys, top = row[first];
        for (int64_t c = first + 1; c < visible; c++) top = oq_max(row[c], top);
        oq_real sums[LANES] = {0}, sum = 0;
        for (int64_t c = first; c < visible; c += LANES) {
            const int lanes = visible - c < LANES ? (int)(visible - c) : LANES;
            for (int l = 0; l < lanes; l++) sums[l] += row[c + l] = oq_exp(row[c + l] - top);
        }
        for (int l = 0; l < LANES; l++) sum += sums[l];
        for (int64_t c = first; c < visible; c++) row[c] /= sum;
        for (int64_t c = 0; c < first; c++) row[c] = 0;
        for (int64_t c = visible; c < t->keys; c++) row[c] = 0;
        log_sum[t->begin + i] = top + (oq_real)log((double)sum);
    }
}

static void forward_head(void *user, int64_t head, int worker)
{
    job *j = user;
    const int64_t T = j->shape.tokens, d = j->shape.head_dim, width = j->shape.heads * d;
    for (int64_t begin = 0; begin < T; begin += TILE) {
        const tile t = make_tile(j, head, begin, worker);
        scores(j, &t, j->q, j->k, j->scale, t.p);
        shape_scores(&j->shape.rule, &t);
        softmax_tile(&j->shape.rule, &t, j->log_sum + head * T);
        product(j, (oq_gemm_args){.m = t.rows,
                                  .n = d,
                                  .k = t.keys,
                                  .alpha = 1,
                                  .a = t.p,
                                  .lda = t.keys,
                                  .b = j->v + t.kv_head * d,
                                  .ldb = j->shape.kv_heads * d,
                                  .c = j->out + begin * width + head * d,
                                  .ldc = width});
    }
}

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
        for (int64_t c = 0; c < d; c++) along += (double)j->dout[offset + c] * (double)j->saved_out[offset + c];
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
    const int64_t T = j->shape.tokens, d = j->shape.head_dim, width = j->shape.heads * d;
    const int64_t kv_width = j->shape.kv_heads * d;
    for (int64_t begin = 0; begin < T; begin += TILE) {
        const tile t = make_tile(j, head, begin, worker);
        const int64_t at = begin * width + head * d; /* this tile's rows of q, dq, dout */
        scores(j, &t, j->q, j->k, j->scale, t.p);
        scores(j, &t, j->dout, j->v, 1, t.dp);
        softmax_tile_backward(j, &t);
        product(j, (oq_gemm_args){.m = t.rows,
                                  .n = d,
                                  .k = t.keys,
                                  .alpha = 1,
                                  .a = t.dp,
                                  .lda = t.keys,
                                  .b = j->k + t.kv_head * d,
                                  .ldb = kv_width,
                                  .c = j->dq + at,
                                  .ldc = width});
        product(j, (oq_gemm_args){.transpose_a = true,
                                  .m = t.keys,
                                  .n = d,
                                  .k = t.rows,
                                  .alpha = 1,
                                  .beta = 1,
                                  .a = t.dp,
                                  .lda = t.keys,
                                  .b = j->q + at,
                                  .ldb = width,
                                  .c = j->dk_heads + head * T * d,
                                  .ldc = d});
        product(j, (oq_gemm_args){.transpose_a = true,
                                  .m = t.keys,
                                  .n = d,
                                  .k = t.rows,
                                  .alpha = 1,
                                  .beta = 1,
                                  .a = t.p,
                                  .lda = t.keys,
                                  .b = j->dout + at,
                                  .ldb = width,
                                  .c = j->dv_heads + head * T * d,
                                  .ldc = d});
    }
}

static oq_code prepare(oq_context *context, job *j)
{
    const int64_t T = j->shape.tokens;
    j->scale = (oq_real)oq_score_scale(&j->shape.rule, j->shape.head_dim);
    OQ_NEW(context, j->scratch, (size_t)context->threads * 2 * TILE * (size_t)T);
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
    job j = {.shape = shape, .q = q, .k = k, .v = v, .out = out, .log_sum = log_sum};
    OQ_TRY(prepare(context, &j));
    oq_parallel_for(context->threads, shape.heads, forward_head, &j);
    oq_arena_rewind(context->arena, mark);
    return outcome(context, &j);
}

oq_code oq_attention_backward(oq_context *context, oq_attention_shape shape, const oq_real *q, const oq_real *k,
                              const oq_real *v, const oq_real *out, const oq_real *log_sum, const oq_real *dout,
                              oq_real *dq, oq_real *dk, oq_real *dv)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.shape = shape,
             .q = q,
             .k = k,
             .v = v,
             .saved_out = out,
             .saved_log_sum = log_sum,
             .dout = dout,
             .dq = dq};
    OQ_TRY(prepare(context, &j));
    OQ_NEW_ZERO(context, j.dk_heads, shape.heads * shape.tokens * shape.head_dim);
    OQ_NEW_ZERO(context, j.dv_heads, shape.heads * shape.tokens * shape.head_dim);
    oq_parallel_for(context->threads, shape.heads, backward_head, &j);
    sum_groups(&shape, j.dk_heads, dk);
    sum_groups(&shape, j.dv_heads, dv);
    oq_arena_rewind(context->arena, mark);
    return outcome(context, &j);
}
