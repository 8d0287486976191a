#include "math/cross_entropy.h"

#include "base/parallel.h"
#include "math/elementary.h"
#include "math/gemm.h"
#include "math/vector.h"

#define CHUNK 128 /* tokens whose logits exist at a time */
#define LANES 16

typedef struct {
    const oq_real *logits; /* [CHUNK, V] */
    const int32_t *targets;
    double *nll;
    int32_t *best;
    int64_t vocabulary;
} job;

OQ_VECTORIZED double oq_row_log_sum(const oq_real *row, int64_t n)
{
    oq_real tops[LANES], top;
    for (int l = 0; l < LANES; l++) tops[l] = row[0];
    for (int64_t i = 0; i < n; i += LANES) {
        const int lanes = n - i < LANES ? (int)(n - i) : LANES;
        for (int l = 0; l < lanes; l++) tops[l] = oq_max(row[i + l], tops[l]);
    }
    top = tops[0];
    for (int l = 1; l < LANES; l++) top = oq_max(tops[l], top);
    double sums[LANES] = {0}, sum = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        const int lanes = n - i < LANES ? (int)(n - i) : LANES;
        for (int l = 0; l < lanes; l++) sums[l] += (double)oq_exp(row[i + l] - top);
    }
    for (int l = 0; l < LANES; l++) sum += sums[l];
    return log(sum) + (double)top;
}

double oq_row_nll(const oq_real *row, int64_t n, int32_t target)
{
    return oq_row_log_sum(row, n) - (double)row[target];
}

int32_t oq_row_best(const oq_real *row, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    return (int32_t)best;
}

static void one_row(void *user, int64_t item, int worker)
{
    const job *j = user;
    const oq_real *row = j->logits + item * j->vocabulary;
    (void)worker;
    j->nll[item] = oq_row_nll(row, j->vocabulary, j->targets[item]);
    j->best[item] = oq_row_best(row, j->vocabulary);
}

oq_code oq_check_targets(oq_context *context, const int32_t *targets, int64_t tokens, int64_t vocabulary)
{
    for (int64_t t = 0; t < tokens; t++)
        if (targets[t] < 0 || targets[t] >= vocabulary)
            return oq_fail(context, OQ_INVALID_ARGUMENT,
                           "token %d at position %lld is outside the vocabulary of %lld", (int)targets[t],
                           (long long)t, (long long)vocabulary);
    return OQ_OK;
}

oq_code oq_cross_entropy(oq_context *context, const oq_logits *head, const oq_real *hidden, const int32_t *targets,
                         double *nll, int32_t *best, int64_t tokens)
{
    const int64_t width = head->width, vocabulary = head->vocabulary;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *logits;
    OQ_TRY(oq_check_targets(context, targets, tokens, vocabulary));
    OQ_NEW(context, logits, (tokens < CHUNK ? tokens : CHUNK) * vocabulary);
    for (int64_t begin = 0; begin < tokens; begin += CHUNK) {
        const int64_t rows = tokens - begin < CHUNK ? tokens - begin : CHUNK;
        OQ_TRY(oq_check_cancel(context));
        OQ_TRY(oq_linear_forward(context, hidden + begin * width, head->weight, logits, rows, width, vocabulary));
        if (head->bias) oq_add_to_rows(logits, head->bias, rows, vocabulary);
        oq_cap(head->cap, logits, rows * vocabulary);
        job j = {logits, targets + begin, nll + begin, best + begin, vocabulary};
        oq_parallel_for(context->threads, rows, one_row, &j);
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
