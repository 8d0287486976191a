#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "math/gemm_amx.h"
#include "math/igemm.h"

enum { WIDEST = 1100, ROWS = 530, COLUMNS = 70, PADDING = 3 };

static uint8_t a[ROWS * (WIDEST + PADDING)];
static int8_t b[COLUMNS * (WIDEST + PADDING)];
static int32_t c[ROWS * (COLUMNS + PADDING)];

/* Half of the rows are as far out as they may be, where 16 bits would overflow first. */
static void fill(const oq_igemm_args *g) {
    for (int64_t i = 0; i < g->m; ++i)
        for (int64_t p = 0; p < g->lda; ++p)
            a[i * g->lda + p] = (uint8_t)(i % 2 ? g->a_most : rand() % (g->a_most + 1));
    for (int64_t j = 0; j < g->n; ++j)
        for (int64_t p = 0; p < g->ldb; ++p) {
            const int far = j % 3 == 0 ? -g->b_most : g->b_most < 127 ? g->b_most : 127;
            b[j * g->ldb + p] = (int8_t)(j % 2 ? far : rand() % (2 * g->b_most) - g->b_most);
        }
}

static int64_t wrong(const oq_igemm_args *g) {
    int64_t count = 0;
    for (int64_t i = 0; i < g->m; ++i)
        for (int64_t j = 0; j < g->ldc; ++j) {
            int32_t expected = 0x55555555;
            if (j < g->n) {
                expected = 0;
                for (int64_t p = 0; p < g->k; ++p) expected += a[i * g->lda + p] * b[j * g->ldb + p];
            }
            count += c[i * g->ldc + j] != expected;
        }
    return count;
}

/* Ours, by the instructions they take. */
static const struct {
    bool (*runs)(void);
    oq_code (*multiply)(const oq_igemm_args *args);
} products[] = {{oq_igemm_avx2_runs, oq_igemm_avx2}, {oq_igemm_amx_runs, oq_igemm_amx}};

static void check(int64_t m, int64_t n, int64_t k, int a_most, int b_most) {
    const oq_igemm_args g = {.m = m, .n = n, .k = k, .a_most = a_most, .b_most = b_most, .a = a, .b = b,
                             .lda = k + rand() % (PADDING + 1), .ldb = k + rand() % (PADDING + 1),
                             .ldc = n + rand() % (PADDING + 1), .c = c};
    fill(&g);
    for (size_t i = 0; i < sizeof products / sizeof *products; ++i) {
        if (!products[i].runs()) continue;
        memset(c, 0x55, sizeof c);
        CHECK(products[i].multiply(&g) == OQ_OK);
        CHECK(wrong(&g) == 0);
    }
}

void test_igemm(void) {
    static const int most[][2] = {{1, 1}, {15, 15}, {15, 8}, {63, 63}, {255, 15}, {255, 32}, {255, 127}, {255, 128}};
    for (size_t kind = 0; kind < sizeof most / sizeof *most; ++kind) {
        for (int i = 0; i < 60; ++i)
            check(1 + rand() % 67, 1 + rand() % 67, 1 + rand() % 67, most[kind][0], most[kind][1]);
        check(ROWS, COLUMNS, WIDEST, most[kind][0], most[kind][1]);
        check(ROWS - 1, COLUMNS - 1, WIDEST - 1, most[kind][0], most[kind][1]);
    }
}
