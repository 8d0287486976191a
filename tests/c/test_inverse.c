#include "math/inverse.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { N = 60 };

static void fill(double *x, int64_t n, double diagonal) {
    for (int64_t i = 0; i < n * n; ++i) x[i] = (double)rand() / RAND_MAX - 0.5;
    for (int64_t i = 0; i < n; ++i) x[i * n + i] += diagonal;
}

static double dot(const double *a, const double *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

/* loss(A) = <d, A^-1>, differenced along a random direction. */
static void backward_is_the_derivative(int64_t n) {
    static double a[N * N], d[N * N], direction[N * N], moved[N * N], inverse[N * N], da[N * N];
    oq_context context = new_context(2);
    const double h = 1e-5;
    double loss[2];
    fill(a, n, (double)n), fill(d, n, 0), fill(direction, n, 0);
    for (int side = 0; side < 2; ++side) {
        for (int64_t i = 0; i < n * n; ++i) moved[i] = a[i] + (side ? h : -h) * direction[i];
        CHECK(oq_inverse(&context, moved, inverse, n, false, "moved") == OQ_OK);
        loss[side] = dot(d, inverse, n * n);
    }
    CHECK(oq_inverse(&context, a, inverse, n, true, "a") == OQ_OK);
    for (int64_t i = 0; i < n * n; ++i) da[i] = 1; /* the gradient is added to what is there */
    CHECK(oq_inverse_backward(&context, inverse, d, da, n) == OQ_OK);
    for (int64_t i = 0; i < n * n; ++i) da[i] -= 1;
    const double slope = (loss[1] - loss[0]) / (2 * h), expected = dot(da, direction, n * n);
    CHECK(fabs(slope - expected) <= 1e-7 * (fabs(slope) + 1e-3));
    oq_arena_destroy(context.arena);
}

static void products_in_double(void) {
    enum { M = 50, COLUMNS = 37, DEPTH = 41 };
    static double a[M * DEPTH], b[DEPTH * COLUMNS], c[M * COLUMNS];
    oq_context context = new_context(2);
    for (int form = 0; form < 8; ++form) {
        const bool ta = form & 1, tb = form & 2, accumulate = form & 4;
        for (int i = 0; i < M * DEPTH; ++i) a[i] = rand() % 9 - 4;
        for (int i = 0; i < DEPTH * COLUMNS; ++i) b[i] = rand() % 9 - 4;
        for (int i = 0; i < M * COLUMNS; ++i) c[i] = accumulate ? 3 : NAN;
        CHECK(oq_dgemm(&context, ta, tb, M, COLUMNS, DEPTH, a, b, c, accumulate) == OQ_OK);
        for (int i = 0; i < M * COLUMNS; ++i) {
            double sum = accumulate ? 3 : 0;
            for (int p = 0; p < DEPTH; ++p) {
                const int row = i / COLUMNS, column = i % COLUMNS;
                sum += a[ta ? p * M + row : row * DEPTH + p] * b[tb ? column * DEPTH + p : p * COLUMNS + column];
            }
            CHECK(c[i] == sum);
        }
    }
    oq_arena_destroy(context.arena);
}

static void norms(void) {
    const double a[] = {1, -2, 3, 4}, inverse[] = {0.4, 0.2, -0.3, 0.1}, bad[] = {1, 2, NAN, 0, 5, 6, 7, 8, 9};
    CHECK(oq_norm_inf(a, 2) == 7);
    CHECK(fabs(oq_condition_inf(a, inverse, 2) - 4.2) < 1e-12);
    CHECK(isnan(oq_norm_inf(bad, 3)));
    CHECK(oq_norm_inf(a, 0) == 0);
}

static void failures_say_what_and_leave_no_scratch(void) {
    double a[] = {1, 2, 2, 4}, inverse[4];
    oq_context context = new_context(1);
    const oq_mark before = oq_arena_mark(context.arena);
    CHECK(oq_inverse(&context, a, inverse, 2, false, "block 7 o_proj") == OQ_SINGULAR);
    CHECK(strcmp(context.error.message, "block 7 o_proj: no inverse: pivot 1 of 2 is 0") == 0);
    const oq_mark after = oq_arena_mark(context.arena);
    CHECK(after.chunk == before.chunk && after.used == before.used);
    oq_arena_destroy(context.arena);
}

void test_inverse(void) {
    srand(2);
    for (int64_t n = 1; n <= N; n += 7) backward_is_the_derivative(n);
    products_in_double();
    norms();
    failures_say_what_and_leave_no_scratch();
}
