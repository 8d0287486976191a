#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "math/bf16.h"
#include "math/gemm.h"

enum { LARGEST = 70, STRIDE = 83, LONGEST = 700 };

/* Small integers: every product and sum is exact, whatever the order. */
static void fill(oq_real *x, size_t count) {
    for (size_t i = 0; i < count; ++i) x[i] = (oq_real)(rand() % 9 - 4);
}

static oq_real element(const oq_real *x, int64_t ld, bool transpose, int64_t row, int64_t column) {
    return transpose ? x[column * ld + row] : x[row * ld + column];
}

static void check_result(const oq_gemm_args *g, const oq_real *before) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < g->m; ++i) {
        for (int64_t j = 0; j < STRIDE; ++j) {
            oq_real expected = before[i * STRIDE + j];
            if (j < g->n) {
                oq_real sum = 0;
                for (int64_t p = 0; p < g->k; ++p) {
                    sum += element(g->a, g->lda, g->transpose_a, i, p) * element(g->b, g->ldb, g->transpose_b, p, j);
                }
                expected = g->alpha * sum + (g->beta == 0 ? 0 : g->beta * expected);
            }
            const oq_real got = g->c[i * STRIDE + j];
            wrong += !(got == expected) && !(isnan(got) && isnan(expected));
        }
    }
    CHECK(wrong == 0);
}

/* Stored rows longer than the matrix; what lies beyond is neither used nor touched. */
static void check_product(oq_context *context, const oq_real *a, const oq_real *b, bool garbage) {
    static oq_real c[LARGEST * STRIDE], before[LARGEST * STRIDE];
    const oq_real factors[] = {0, 1, -1, 2};
    oq_gemm_args g = {.transpose_a = rand() % 2, .transpose_b = rand() % 2, .m = rand() % LARGEST,
                      .n = rand() % LARGEST, .k = rand() % LARGEST, .alpha = factors[1 + rand() % 3],
                      .beta = garbage ? 0 : factors[rand() % 4], .a = a, .b = b, .lda = STRIDE, .ldb = STRIDE,
                      .ldc = STRIDE, .c = c};
    fill(before, LARGEST * STRIDE);
    for (int64_t i = 0; garbage && i < LARGEST * STRIDE; ++i) before[i] = (oq_real)NAN;
    memcpy(c, before, sizeof c);
    if (rand() % 2) oq_gemm_reference(&g);
    else CHECK(oq_gemm(context, &g) == OQ_OK);
    check_result(&g, before);
}

/* In parts or whole: parts of small integers are the integers and zeros. */
static void products(bool in_parts) {
    static oq_real a[LARGEST * STRIDE], b[LARGEST * STRIDE];
    oq_context context = new_context(2);
    context.in_parts = in_parts;
    fill(a, LARGEST * STRIDE);
    fill(b, LARGEST * STRIDE);
    for (int i = 0; i < 300; ++i) check_product(&context, a, b, i % 2);
    oq_arena_destroy(context.arena);
}

/* <dy, x W^T> = <dx, x> = <dw, W>: the backward products belong to the forward one. */
static void linear_is_bilinear(void) {
    enum { ROWS = 300, IN = 70, OUT = 90 };
    static oq_real x[ROWS * IN], w[OUT * IN], y[ROWS * OUT], dy[ROWS * OUT], dx[ROWS * IN], dw[OUT * IN];
    oq_context context = new_context(2);
    double forward = 0, input = 0, weight = 0;
    fill(x, ROWS * IN), fill(w, OUT * IN), fill(dy, ROWS * OUT);
    CHECK(oq_linear_forward(&context, x, w, y, ROWS, IN, OUT) == OQ_OK);
    for (int accumulate = 0; accumulate <= 1; ++accumulate) {
        CHECK(oq_linear_backward_input(&context, dy, w, dx, ROWS, IN, OUT, accumulate) == OQ_OK);
        CHECK(oq_linear_backward_weight(&context, dy, x, dw, ROWS, IN, OUT, accumulate) == OQ_OK);
    }
    for (int i = 0; i < ROWS * OUT; ++i) forward += (double)dy[i] * (double)y[i];
    for (int i = 0; i < ROWS * IN; ++i) input += (double)dx[i] * (double)x[i];
    for (int i = 0; i < OUT * IN; ++i) weight += (double)dw[i] * (double)w[i];
    CHECK(forward != 0 && input == 2 * forward && weight == 2 * forward);
    oq_arena_destroy(context.arena);
}

/* Small integers are exact in bfloat16 too. Rows of k beyond a tile's, and C in more than one block. */
static void check_halves(oq_context *context, const oq_real *a, const oq_real *b, const uint16_t *a_half,
                         const uint16_t *b_half, int64_t most) {
    static oq_real c[LONGEST * LONGEST], before[LONGEST * LONGEST];
    const bool accumulate = rand() % 2;
    const oq_bf16_gemm_args g = {.transpose_a = rand() % 2, .transpose_b = rand() % 2, .accumulate = accumulate,
                                 .m = 1 + rand() % most, .n = 1 + rand() % most, .k = 1 + rand() % most, .a = a_half,
                                 .b = b_half, .lda = LONGEST, .ldb = LONGEST, .ldc = LONGEST, .c = c};
    int64_t wrong = 0;
    fill(before, LONGEST * LONGEST);
    memcpy(c, before, sizeof c);
    CHECK(oq_bf16_gemm(context, &g) == OQ_OK);
    const oq_gemm_args same = {.transpose_a = g.transpose_a, .transpose_b = g.transpose_b, .m = g.m, .n = g.n,
                               .k = g.k, .alpha = 1, .beta = accumulate, .a = a, .b = b, .lda = LONGEST,
                               .ldb = LONGEST, .ldc = LONGEST, .c = before};
    oq_gemm_reference(&same);
    for (int64_t i = 0; i < LONGEST * LONGEST; ++i) wrong += c[i] != before[i];
    CHECK(wrong == 0);
}

/* What products in parts are off by, against sums in double. */
static void parts(void) {
    enum { M = 45, N = 61, K = 601 };
    static oq_real a[M * K], b[N * K], c[M * N];
    oq_context context = new_context(2);
    context.in_parts = true;
    for (int i = 0; i < M * K; ++i) a[i] = (oq_real)rand() / (oq_real)RAND_MAX - (oq_real)0.5;
    for (int i = 0; i < N * K; ++i) b[i] = (oq_real)rand() / (oq_real)RAND_MAX - (oq_real)0.5;
    for (int kind = 0; kind < 4; ++kind) {
        const bool ta = kind % 2, tb = kind / 2;
        const oq_gemm_args g = {.transpose_a = ta, .transpose_b = tb, .m = M, .n = N, .k = K, .alpha = 1, .a = a,
                                .b = b, .lda = ta ? M : K, .ldb = tb ? K : N, .ldc = N, .c = c};
        CHECK(oq_gemm(&context, &g) == OQ_OK);
        int64_t wrong = 0;
        for (int64_t i = 0; i < M; ++i)
            for (int64_t j = 0; j < N; ++j) {
                double sum = 0, size = 0;
                for (int64_t p = 0; p < K; ++p) {
                    const double x = (double)element(a, g.lda, ta, i, p) * (double)element(b, g.ldb, tb, p, j);
                    sum += x, size += fabs(x);
                }
                wrong += !(fabs((double)c[i * N + j] - sum) <= size / 65536);
            }
        CHECK(wrong == 0);
    }
    oq_arena_destroy(context.arena);
}

static void halves(void) {
    static oq_real a[LONGEST * LONGEST], b[LONGEST * LONGEST];
    static uint16_t a_half[LONGEST * LONGEST], b_half[LONGEST * LONGEST];
    if (!oq_has_bf16()) return;
    oq_context context = new_context(2);
    fill(a, LONGEST * LONGEST), fill(b, LONGEST * LONGEST);
    oq_bf16_round(a, a_half, LONGEST * LONGEST), oq_bf16_round(b, b_half, LONGEST * LONGEST);
    for (int i = 0; i < 200; ++i) check_halves(&context, a, b, a_half, b_half, i % 10 ? LARGEST : LONGEST);
    oq_arena_destroy(context.arena);
}

void test_products(void) {
    srand(1);
    products(false);
    products(true);
    parts();
    halves();
    linear_is_bilinear();
}
