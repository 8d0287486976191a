#include "math/inverse.h"

#include <string.h>

#include "base/parallel.h"

#define TILE_REAL double
#define TILE_GEMM tiled_gemm
#include "math/gemm_tile.h"

enum {
    BLOCK = 48, /* columns factored, rows solved, before the rest is brought up to date by a product */
    PANEL = 64  /* rows of a product, or right-hand sides, that one thread takes at a time */
};

/* A = P^T L U in place: L unit lower triangular below the diagonal, U on and above it. */
typedef struct {
    double *lu;      /* [n, n] */
    int64_t *origin; /* [n]: row i of P A is row origin[i] of A */
    double *inverse; /* [n, n] */
    int64_t n;
    int64_t k0, k1; /* the block of columns just factored */
    bool pivot;
} factors;

OQ_VECTORIZED static void subtract_scaled(double *restrict y, const double *restrict x, double scale, int64_t n)
{
    for (int64_t i = 0; i < n; ++i) y[i] -= scale * x[i];
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void swap_rows(factors *f, int64_t i, int64_t j)
{
    double *a = f->lu + i * f->n, *b = f->lu + j * f->n;
    for (int64_t p = 0; p < f->n; ++p) {
        const double t = a[p];
        a[p] = b[p];
        b[p] = t;
    }
    const int64_t t = f->origin[i];
    f->origin[i] = f->origin[j];
    f->origin[j] = t;
}

static int64_t largest_in_column(const factors *f, int64_t column)
{
    int64_t best = column;
    for (int64_t i = column + 1; i < f->n; ++i) {
        if (fabs(f->lu[i * f->n + column]) > fabs(f->lu[best * f->n + column])) best = i;
    }
    return best;
}

/* Columns k0..k1 of L and U, all rows from k0 down. */
static oq_code factor_columns(oq_context *context, factors *f, const char *what)
{
    const int64_t n = f->n;
    for (int64_t j = f->k0; j < f->k1; ++j) {
        const int64_t best = f->pivot ? largest_in_column(f, j) : j;
        if (best != j) swap_rows(f, best, j);
        const double *top = f->lu + j * n;
        if (top[j] == 0 || !isfinite(top[j])) {
            return oq_fail(context, OQ_SINGULAR, "%s: no inverse: pivot %lld of %lld is %g", what, (long long)j,
                           (long long)n, top[j]);
        }
        for (int64_t i = j + 1; i < n; ++i) {
            double *row = f->lu + i * n;
            row[j] /= top[j];
            subtract_scaled(row + j + 1, top + j + 1, row[j], f->k1 - j - 1);
        }
    }
    return OQ_OK;
}

/* Rows k0..k1 of U right of the block: L11 U12 = A12. */
static void solve_block_row(factors *f)
{
    const int64_t n = f->n;
    for (int64_t i = f->k0; i < f->k1; ++i) {
        for (int64_t p = f->k0; p < i; ++p) {
            subtract_scaled(f->lu + i * n + f->k1, f->lu + p * n + f->k1, f->lu[i * n + p], n - f->k1);
        }
    }
}

/* c [m, columns] -= a [m, k] b [k, columns], all within n x n matrices. */
static void subtract_product(int64_t n, int64_t m, int64_t columns, int64_t k, const double *a, const double *b,
                             double *c)
{
    tiled_gemm(&(tile_args){.m = m,
                            .n = columns,
                            .k = k,
                            .alpha = -1,
                            .beta = 1,
                            .a = a,
                            .lda = n,
                            .b = b,
                            .ldb = n,
                            .c = c,
                            .ldc = n});
}

/* A panel of rows of A22 -= L21 U12. */
static void update_rows(void *user, int64_t item, int worker)
{
    (void)worker;
    const factors *f = user;
    const int64_t n = f->n, row = f->k1 + item * PANEL;
    subtract_product(n, least(PANEL, n - row), n - f->k1, f->k1 - f->k0, f->lu + row * n + f->k0,
                     f->lu + f->k0 * n + f->k1, f->lu + row * n + f->k1);
}

static oq_code factor(oq_context *context, factors *f, const char *what)
{
    for (int64_t i = 0; i < f->n; ++i) f->origin[i] = i;
    for (f->k0 = 0; f->k0 < f->n; f->k0 = f->k1) {
        f->k1 = least(f->k0 + BLOCK, f->n);
        OQ_TRY(factor_columns(context, f, what));
        if (f->k1 == f->n) break;
        solve_block_row(f);
        oq_parallel_for(context->threads, (f->n - f->k1 + PANEL - 1) / PANEL, update_rows, f);
    }
    return OQ_OK;
}

/* x [n, width] <- L^-1 x, knowing that rows before `first` are zero. */
static void solve_lower(const factors *f, double *x, int64_t width, int64_t first)
{
    const int64_t n = f->n;
    for (int64_t k0 = first; k0 < n; k0 += BLOCK) {
        const int64_t k1 = least(k0 + BLOCK, n);
        subtract_product(n, k1 - k0, width, k0 - first, f->lu + k0 * n + first, x + first * n, x + k0 * n);
        for (int64_t i = k0; i < k1; ++i) {
            for (int64_t p = k0; p < i; ++p) subtract_scaled(x + i * n, x + p * n, f->lu[i * n + p], width);
        }
    }
}

/* x [n, width] <- U^-1 x. */
static void solve_upper(const factors *f, double *x, int64_t width)
{
    const int64_t n = f->n;
    for (int64_t k0 = (n - 1) / BLOCK * BLOCK; k0 >= 0; k0 -= BLOCK) {
        const int64_t k1 = least(k0 + BLOCK, n);
        subtract_product(n, k1 - k0, width, n - k1, f->lu + k0 * n + k1, x + k1 * n, x + k0 * n);
        for (int64_t i = k1 - 1; i >= k0; --i) {
            for (int64_t p = i + 1; p < k1; ++p) subtract_scaled(x + i * n, x + p * n, f->lu[i * n + p], width);
            for (int64_t j = 0; j < width; ++j) x[i * n + j] /= f->lu[i * n + i];
        }
    }
}

/* A panel of columns of the inverse: L U X = P I. */
static void solve_columns(void *user, int64_t item, int worker)
{
    (void)worker;
    const factors *f = user;
    const int64_t n = f->n, column = item * PANEL, width = least(PANEL, n - column);
    double *x = f->inverse + column;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < width; ++j) x[i * n + j] = f->origin[i] == column + j;
    }
    solve_lower(f, x, width, f->pivot ? 0 : column / BLOCK * BLOCK);
    solve_upper(f, x, width);
}

static oq_code check_finite(oq_context *context, const double *inverse, int64_t n, const char *what)
{
    for (int64_t i = 0; i < n * n; ++i) {
        if (isfinite(inverse[i])) continue;
        return oq_fail(context, OQ_SINGULAR, "%s: no inverse: element [%lld, %lld] would be %g", what,
                       (long long)(i / n), (long long)(i % n), inverse[i]);
    }
    return OQ_OK;
}

oq_code oq_inverse(oq_context *context, const double *a, double *inverse, int64_t n, bool pivot, const char *what)
{
    if (n <= 0) return OQ_OK;
    factors f = {.inverse = inverse, .n = n, .pivot = pivot};
    const oq_mark mark = oq_arena_mark(context->arena);
    OQ_NEW(context, f.lu, n * n);
    OQ_NEW(context, f.origin, n);
    memcpy(f.lu, a, (size_t)(n * n) * sizeof *a);
    oq_code code = factor(context, &f, what);
    if (code == OQ_OK) {
        oq_parallel_for(context->threads, (n + PANEL - 1) / PANEL, solve_columns, &f);
        code = check_finite(context, inverse, n, what);
    }
    oq_arena_rewind(context->arena, mark);
    return code;
}

oq_code oq_inverse_backward(oq_context *context, const double *inverse, const double *d_inverse, double *da,
                            int64_t n)
{
    double *left, *both;
    const oq_mark mark = oq_arena_mark(context->arena);
    OQ_NEW(context, left, n * n);
    OQ_NEW(context, both, n * n);
    OQ_TRY(oq_dgemm(context, true, false, n, n, n, inverse, d_inverse, left, false));
    OQ_TRY(oq_dgemm(context, false, true, n, n, n, left, inverse, both, false));
    for (int64_t i = 0; i < n * n; ++i) da[i] -= both[i];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

double oq_norm_inf(const double *a, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < n; ++j) sum += fabs(a[i * n + j]);
        if (isnan(sum)) return sum;
        if (sum > largest) largest = sum;
    }
    return largest;
}

double oq_condition_inf(const double *a, const double *inverse, int64_t n)
{
    return oq_norm_inf(a, n) * oq_norm_inf(inverse, n);
}

static void multiply_rows(void *user, int64_t item, int worker)
{
    (void)worker;
    tile_args part = *(const tile_args *)user;
    const int64_t row = item * PANEL;
    part.m = least(PANEL, part.m - row);
    part.a += part.transpose_a ? row : row * part.lda;
    part.c += row * part.ldc;
    tiled_gemm(&part);
}

oq_code oq_dgemm(oq_context *context, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                 const double *a, const double *b, double *c, bool accumulate)
{
    tile_args args = {.transpose_a = transpose_a,
                      .transpose_b = transpose_b,
                      .m = m,
                      .n = n,
                      .k = k,
                      .alpha = 1,
                      .beta = accumulate ? 1 : 0,
                      .a = a,
                      .lda = transpose_a ? m : k,
                      .b = b,
                      .ldb = transpose_b ? k : n,
                      .c = c,
                      .ldc = n};
    oq_parallel_for(context->threads, (m + PANEL - 1) / PANEL, multiply_rows, &args);
    return OQ_OK;
}
