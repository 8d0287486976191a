#include "calibrate/gptq.h"

#include <stdlib.h>

#include "base/parallel.h"
#include "math/cholesky.h"
#include "math/gemm.h"

enum {
    ROWS = 16,  /* rows a thread takes at a time */
    BLOCK = 128 /* columns rounded before the rest is brought up to date by a product */
};

/* ---- the factor ------------------------------------------------------------ */

typedef struct {
    double activity;
    int64_t column;
} ranked;

static int by_activity(const void *left, const void *right)
{
    const ranked *a = left, *b = right;
    if (a->activity != b->activity) return a->activity > b->activity ? -1 : 1;
    return (a->column > b->column) - (a->column < b->column);
}

static oq_code choose_order(oq_context *context, const oq_gptq_options *options, const double *gram, int64_t n,
                            int64_t *order)
{
    ranked *all;
    OQ_NEW(context, all, n);
    for (int64_t i = 0; i < n; i++) all[i] = (ranked){gram[i * n + i], i};
    if (options->by_activity) qsort(all, (size_t)n, sizeof *all, by_activity);
    for (int64_t i = 0; i < n; i++) order[i] = all[i].column;
    return OQ_OK;
}

static double damping_of(const oq_gptq_options *options, const double *gram, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += gram[i * n + i];
    return sum > 0 ? options->damping * sum / (double)n : 1;
}

/* With the order reversed, G = L L^T gives U as L^-1 reversed in both directions: one factor, one inverse. */
oq_code oq_feedback_create(oq_context *context, oq_feedback *f, const oq_gptq_options *options, const double *gram,
                           int64_t n, const char *what)
{
    f->n = n;
    OQ_NEW(context, f->order, n);
    OQ_NEW(context, f->u, n * n);
    const oq_mark mark = oq_arena_mark(context->arena);
    double *l, *inverse;
    OQ_NEW(context, l, n * n);
    OQ_NEW(context, inverse, n * n);
    OQ_TRY(choose_order(context, options, gram, n, f->order));
    const double damping = damping_of(options, gram, n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            const int64_t row = f->order[n - 1 - i], column = f->order[n - 1 - j];
            l[i * n + j] = gram[row * n + column] + (i == j ? damping : 0);
        }
    OQ_TRY(oq_cholesky(context, l, n, what));
    oq_lower_inverse(context, l, inverse, n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) f->u[i * n + j] = (oq_real)inverse[(n - 1 - i) * n + (n - 1 - j)];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* ---- the rows --------------------------------------------------------------- */

typedef struct {
    const oq_groups *groups;
    const oq_feedback *feedback;
    const oq_real *w, *scale;
    const uint8_t *zero_point;
    uint8_t *codes;
    oq_real *left;  /* [workers, ROWS, n] what is still to be rounded, in the order */
    oq_real *error; /* [workers, ROWS, BLOCK] (w - w^) / U_ii */
    oq_code *code;  /* [items] */
} job;

/* Rounds column i of a row and returns its error over U_ii. */
OQ_INLINE oq_real round_one(const job *j, int64_t row, int64_t i, oq_real w)
{
    const int64_t n = j->feedback->n, column = j->feedback->order[i];
    const int64_t group = row * oq_groups_per_row(j->groups) + column / j->groups->group;
    const oq_real h = j->scale[group], z = j->zero_point[group], top = oq_top_code(j->groups->quantizer.bits);
    const oq_real q = oq_min(oq_max(oq_rint(w / h) + z, 0), top);
    j->codes[row * n + column] = (uint8_t)q;
    return (w - (q - z) * h) / j->feedback->u[i * n + i];
}

/* Columns begin .. end of one row, each handing its error to those behind it in the block. */
OQ_VECTORIZED static void round_block(const job *j, int64_t row, oq_real *left, oq_real *error, int64_t begin,
                                      int64_t end)
{
    const int64_t n = j->feedback->n;
    for (int64_t i = begin; i < end; i++) {
        const oq_real e = error[i - begin] = round_one(j, row, i, left[i]);
        const oq_real *u = j->feedback->u + i * n;
        for (int64_t k = i + 1; k < end; k++) left[k] -= e * u[k];
    }
}

static void gather(const job *j, int64_t row, oq_real *left)
{
    const int64_t n = j->feedback->n;
    for (int64_t i = 0; i < n; i++) left[i] = j->w[row * n + j->feedback->order[i]];
}

static void round_rows(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t n = j->feedback->n, first = item * ROWS;
    const int64_t rows = j->groups->rows - first < ROWS ? j->groups->rows - first : ROWS;
    oq_real *left = j->left + (int64_t)worker * ROWS * n, *error = j->error + (int64_t)worker * ROWS * BLOCK;
    for (int64_t r = 0; r < rows; r++) gather(j, first + r, left + r * n);
    for (int64_t begin = 0; begin < n && j->code[item] == OQ_OK; begin += BLOCK) {
        const int64_t end = begin + BLOCK < n ? begin + BLOCK : n;
        for (int64_t r = 0; r < rows; r++) round_block(j, first + r, left + r * n, error + r * BLOCK, begin, end);
        if (end == n) break;
        j->code[item] = oq_gemm_serial(&(oq_gemm_args){.m = rows,
                                                       .n = n - end,
                                                       .k = end - begin,
                                                       .alpha = -1,
                                                       .beta = 1,
                                                       .a = error,
                                                       .lda = BLOCK,
                                                       .b = j->feedback->u + begin * n + end,
                                                       .ldb = n,
                                                       .c = left + end,
                                                       .ldc = n});
    }
}

oq_code oq_gptq(oq_context *context, const oq_groups *groups, const oq_feedback *feedback, const oq_real *w,
                const oq_real *scale, const uint8_t *zero_point, uint8_t *codes)
{
    const int64_t items = (groups->rows + ROWS - 1) / ROWS, n = feedback->n;
    const oq_mark mark = oq_arena_mark(context->arena);
    job j = {.groups = groups,
             .feedback = feedback,
             .w = w,
             .scale = scale,
             .zero_point = zero_point,
             .codes = codes};
    OQ_NEW(context, j.left, context->threads * ROWS * n);
    OQ_NEW(context, j.error, context->threads * ROWS * BLOCK);
    OQ_NEW_ZERO(context, j.code, items);
    oq_parallel_for(context->threads, items, round_rows, &j);
    for (int64_t i = 0; i < items; i++)
        if (j.code[i] != OQ_OK) return oq_fail(context, j.code[i], "a product of the error feedback failed");
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
