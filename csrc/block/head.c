#include "block/head.h"

#include <string.h>

#include "base/parallel.h"
#include "base/size.h"
#include "math/bf16.h"
#include "math/cross_entropy.h"
#include "math/divergence.h"
#include "math/gemm.h"
#include "math/vector.h"

enum { CHUNK = 128 }; /* rows whose logits exist at a time, of two models */

static oq_norm_shape norm_shape(const oq_head *head, int64_t rows)
{
    return (oq_norm_shape){head->norm, head->norm_eps, rows, head->width};
}

oq_code oq_token_nll(oq_context *context, const oq_head *head, double *nll, int32_t *best)
{
    const oq_norm_shape shape = norm_shape(head, head->rows);
    const oq_logits logits = {head->head, head->head_bias, head->logit_cap, shape.width, head->vocabulary};
    oq_real *normed;
    oq_norm_stats *stats;
    OQ_NEW(context, normed, shape.rows * shape.width);
    OQ_NEW(context, stats, shape.rows);
    oq_norm_forward(context, shape, head->hidden, head->gain, head->bias, normed, stats);
    return oq_cross_entropy(context, &logits, normed, head->targets, nll, best, shape.rows);
}

/* ---- the divergence of two heads, forward and backward --------------------- */

/* Some rows of one head. */
typedef struct {
    const oq_head *head;
    uint16_t *half;  /* [V, H] the head in bfloat16; NULL: products are of floats */
    oq_real *normed; /* [CHUNK, H] */
    oq_real *logits; /* [CHUNK, V] */
    oq_norm_stats *stats;
} side;

typedef struct {
    const side *model, *reference;
    double *kl;    /* [rows] */
    oq_real share; /* of a row in the mean */
} job;

static oq_code halve(oq_context *context, const oq_real *x, int64_t count, uint16_t **half)
{
    OQ_NEW(context, *half, count);
    oq_bf16_from_real(context, x, *half, count);
    return OQ_OK;
}

/* Models of one head in memory share its bfloat16 form: `like` is the other side, or NULL. */
static oq_code create_side(oq_context *context, side *s, const oq_head *head, const side *like)
{
    *s = (side){.head = head};
    if (like && like->head->head == head->head)
        s->half = like->half;
    else if (head->bf16)
        OQ_TRY(halve(context, head->head, head->vocabulary * head->width, &s->half));
    OQ_NEW(context, s->normed, CHUNK * head->width);
    OQ_NEW(context, s->logits, CHUNK * head->vocabulary);
    OQ_NEW(context, s->stats, CHUNK);
    return OQ_OK;
}

/* y [rows, V] = x [rows, H] head^T, or y [rows, H] = x [rows, V] head. */
static oq_code multiply(oq_context *context, const side *s, const oq_real *x, int64_t rows, bool back, oq_real *y)
{
    const int64_t H = s->head->width, V = s->head->vocabulary;
    const int64_t from = back ? V : H, to = back ? H : V;
    const oq_mark mark = oq_arena_mark(context->arena);
    uint16_t *half;
    if (!s->half && back) return oq_linear_backward_input(context, x, s->head->head, y, rows, H, V, false);
    if (!s->half) return oq_linear_forward(context, x, s->head->head, y, rows, H, V);
    OQ_TRY(halve(context, x, rows * from, &half));
    OQ_TRY(oq_bf16_gemm(context, &(oq_bf16_gemm_args){.transpose_b = !back,
                                                      .m = rows,
                                                      .n = to,
                                                      .k = from,
                                                      .a = half,
                                                      .lda = from,
                                                      .b = s->half,
                                                      .ldb = H,
                                                      .c = y,
                                                      .ldc = to}));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static oq_code side_forward(oq_context *context, const side *s, int64_t first, int64_t rows)
{
    const oq_head *h = s->head;
    oq_norm_forward(context, norm_shape(h, rows), h->hidden + first * h->width, h->gain, h->bias, s->normed, s->stats);
    OQ_TRY(multiply(context, s, s->normed, rows, false, s->logits));
    if (h->head_bias) oq_add_to_rows(s->logits, h->head_bias, rows, h->vocabulary);
    oq_cap(h->logit_cap, s->logits, rows * h->vocabulary);
    return OQ_OK;
}

/* The side's logits hold their gradient, which is spent. */
static oq_code side_backward(oq_context *context, const side *s, int64_t first, int64_t rows, oq_real *dhidden)
{
    const oq_head *h = s->head;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *dnormed, *dx = dhidden + first * h->width;
    OQ_NEW(context, dnormed, rows * h->width);
    OQ_TRY(multiply(context, s, s->logits, rows, true, dnormed));
    memset(dx, 0, sizeof *dx * (size_t)(rows * h->width));
    OQ_TRY(oq_norm_backward(context, norm_shape(h, rows), h->hidden + first * h->width, h->gain, s->stats, dnormed, dx,
                            NULL, NULL));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

static void one_row(void *user, int64_t item, int worker)
{
    const job *j = user;
    const oq_head *head = j->model->head;
    const int64_t n = head->vocabulary;
    (void)worker;
    j->kl[item] = oq_row_divergence_backward(j->reference->logits + item * n, j->model->logits + item * n, n,
                                             j->share, head->logit_cap);
}

oq_code oq_head_divergence(oq_context *context, const oq_head *head, const oq_head *reference, double *kl,
                           oq_real *dhidden)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    side model, other;
    OQ_TRY(create_side(context, &model, head, NULL));
    OQ_TRY(create_side(context, &other, reference, &model));
    for (int64_t first = 0; first < head->rows; first += CHUNK) {
        const int64_t rows = oq_least(CHUNK, head->rows - first);
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(side_forward(context, &model, first, rows));
        OQ_TRY(side_forward(context, &other, first, rows));
        job j = {&model, &other, kl + first, 1 / (oq_real)head->rows};
        oq_parallel_for(context->threads, rows, one_row, &j);
        OQ_TRY(side_backward(context, &model, first, rows, dhidden));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
