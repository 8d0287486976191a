#include "math/cholesky.h"

#include <math.h>
#include <string.h>

#include "base/parallel.h"
#include "base/real.h"

enum {
    LANES = 8,
    BLOCK = 64, /* columns factored together; also the columns of the inverse that one thread takes */
    ROWS = 16   /* rows of a block column that one thread takes at a time */
};

typedef struct {
    double *a; /* [n, n] */
    int64_t n, begin, end;
    const double *l;
    double *inverse;
} job;

OQ_INLINE double dot(const double *x, const double *y, int64_t n)
{
    double sums[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += x[i + j] * y[i + j];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int j = 0; j < LANES; j++) sum += sums[j];
    return sum;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- the factor, a block of columns at a time ------------------------------ */

/* Rows of the block column, less what the columns before it explain. */
OQ_VECTORIZED static void subtract_rows(const job *j, int64_t first, int64_t last)
{
    for (int64_t i = first; i < last; i++) {
        double *row = j->a + i * j->n;
        for (int64_t c = j->begin; c < least(j->end, i + 1); c++) row[c] -= dot(row, j->a + c * j->n, j->begin);
    }
}

/* Rows below the diagonal block, by forward substitution. */
OQ_VECTORIZED static void solve_rows(const job *j, int64_t first, int64_t last)
{
    for (int64_t i = first; i < last; i++) {
        double *row = j->a + i * j->n + j->begin;
        for (int64_t c = j->begin; c < j->end; c++) {
            const double *l = j->a + c * j->n + j->begin;
            const int64_t k = c - j->begin;
            row[k] = (row[k] - dot(row, l, k)) / l[k];
        }
    }
}

/* The diagonal block; returns the row whose pivot is not positive, or -1. */
static int64_t factor_diagonal(const job *j)
{
    for (int64_t i = j->begin; i < j->end; i++) {
        double *row = j->a + i * j->n + j->begin;
        for (int64_t c = j->begin; c <= i; c++) {
            const double *l = j->a + c * j->n + j->begin;
            const int64_t k = c - j->begin;
            const double left = row[k] - dot(row, l, k);
            if (c < i)
                row[k] = left / l[k];
            else if (left > 0)
                row[k] = sqrt(left);
            else
                return i;
        }
    }
    return -1;
}

static void subtract_item(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t first = j->begin + item * ROWS;
    (void)worker;
    subtract_rows(j, first, least(first + ROWS, j->n));
}

static void solve_item(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t first = j->end + item * ROWS;
    (void)worker;
    solve_rows(j, first, least(first + ROWS, j->n));
}

oq_code oq_cholesky(oq_context *context, double *a, int64_t n, const char *what)
{
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        job j = {.a = a, .n = n, .begin = begin, .end = least(begin + BLOCK, n)};
        OQ_TRY(oq_check_cancel(context));
        oq_parallel_for(context->threads, (n - begin + ROWS - 1) / ROWS, subtract_item, &j);
        const int64_t bad = factor_diagonal(&j);
        if (bad >= 0)
            return oq_fail(context, OQ_SINGULAR, "%s: row %lld has no positive pivot", what, (long long)bad);
        oq_parallel_for(context->threads, (n - j.end + ROWS - 1) / ROWS, solve_item, &j);
    }
    return OQ_OK;
}

/* ---- the inverse, a block of columns at a time ------------------------------ */

/* Columns c .. c + width of L^-1, row after row: x_i = (e_i - sum_k<i l_ik x_k) / l_ii. */
OQ_VECTORIZED static void invert_columns(const job *j, int64_t c, int64_t width)
{
    const int64_t n = j->n;
    for (int64_t i = c; i < n; i++) {
        double sums[BLOCK] = {0};
        const double *l = j->l + i * n;
        if (i - c < width) sums[i - c] = 1;
        for (int64_t k = c; k < i; k++) {
            const double *x = j->inverse + k * n + c, factor = l[k];
            for (int64_t p = 0; p < width; p++) sums[p] -= factor * x[p];
        }
        for (int64_t p = 0; p < width; p++) j->inverse[i * n + c + p] = sums[p] / l[i];
    }
}

static void invert_item(void *user, int64_t item, int worker)
{
    const job *j = user;
    const int64_t c = item * BLOCK;
    (void)worker;
    invert_columns(j, c, least(BLOCK, j->n - c));
}

void oq_lower_inverse(const oq_context *context, const double *l, double *inverse, int64_t n)
{
    job j = {.n = n, .l = l, .inverse = inverse};
    memset(inverse, 0, sizeof *inverse * (size_t)(n * n));
    oq_parallel_for(context->threads, (n + BLOCK - 1) / BLOCK, invert_item, &j);
}
