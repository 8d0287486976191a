#include "block/head.h"

#include <string.h>

#include "base/parallel.h"
#include "base/size.h"
#include "math/cross_entropy.h"
#include "math/divergence.h"
#include "math/gemm.h"
#include "math/vector.h"

#define CHUNK 64 /* rows whose logits exist at a time, of two models */

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
    oq_real *normed; /* [CHUNK, H] */
    oq_real *logits; /* [CHUNK, V] */
    oq_norm_stats *stats;
} side;

typedef struct {
    const side *model, *reference;
    double *kl;    /* [rows] */
    oq_real share; /* of a row in the mean */
} job;

static oq_code create_side(oq_context *context, side *s, const oq_head *head)
{
    s->head = head;
    OQ_NEW(context, s->normed, CHUNK * head->width);
    OQ_NEW(context, s->logits, CHUNK * head->vocabulary);
    OQ_NEW(context, s->stats, CHUNK);
    return OQ_OK;
}

static oq_code side_forward(oq_context *context, const side *s, int64_t first, int64_t rows)
{
    const oq_head *h = s->head;
    oq_norm_forward(context, norm_shape(h, rows), h->hidden + first * h->width, h->gain, h->bias, s->normed, s->stats);
    OQ_TRY(oq_linear_forward(context, s->normed, h->head, s->logits, rows, h->width, h->vocabulary));
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
    OQ_TRY(oq_linear_backward_input(context, s->logits, h->head, dnormed, rows, h->width, h->vocabulary, false));
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
    OQ_TRY(create_side(context, &model, head));
    OQ_TRY(create_side(context, &other, reference));
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
