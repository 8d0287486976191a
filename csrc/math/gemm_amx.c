/* Products of bfloat16, of bytes and of floats by AMX's tiles (base/amx.h): of some rows of A, some columns of B and a
 * stretch of k operands are packed into tiles, and C is made 32 by 32 in four tiles. */
#include "math/gemm_amx.h"

#include <string.h>

#include "base/cpu.h"
#include "base/scratch.h"
#include "base/size.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "base/amx.h"
#include "math/amx_pack.h"
#include "math/vector.h"

enum {
    SIDE = OQ_AMX_ROWS,
    BLOCK = 2 * SIDE, /* rows and columns of C in tiles */
    DEEP = 18,        /* tiles of k at a time: A's 32 rows of them stay in the level 1 cache, while B streams */
    WIDE = 512,       /* columns of B and */
    TALL = 512        /* rows of A at a time: half a MiB each, in the level 2 cache */
};

typedef enum { BF16, BYTES } word;

/* What both products are: C [m, n] (+)= A B, words of 32 bits. */
typedef struct {
    word kind;
    bool accumulate;
    int64_t m, n, k, ldc;
    oq_operand a, b;
    int32_t *c;
} job;

typedef struct {
    _Alignas(64) uint8_t a[TALL * DEEP * OQ_AMX_BYTES], b[WIDE * DEEP * OQ_AMX_BYTES];
    int32_t c[BLOCK * BLOCK];
} packed;

/* ---- 32 by 32 ------------------------------------------------------------------ */

/* Two rows of the block below, which are written some microseconds later: they come from far. */
static inline void expect_rows(const int32_t *below, int64_t ldc, int64_t step)
{
    if (!below || step >= SIDE) return;
    for (int64_t i = 2 * step; i < 2 * step + 2; i++) {
        __builtin_prefetch(below + i * ldc, 1);
        __builtin_prefetch(below + i * ldc + SIDE, 1);
    }
}

#define MULTIPLY(instruction)                                 \
    for (int64_t p = 0; p < tiles; p++) {                     \
        expect_rows(next, ldc, p);                            \
        OQ_TILE_LOAD(4, a + p * OQ_AMX_TILE, 64);             \
        OQ_TILE_STREAM(6, b + 2 * p * OQ_AMX_TILE, 64);       \
        OQ_TILE_STREAM(7, b + (2 * p + 1) * OQ_AMX_TILE, 64); \
        OQ_TILE_LOAD(5, a + (tiles + p) * OQ_AMX_TILE, 64);   \
        OQ_AMX_MULTIPLY(instruction);                         \
    }

/* C (+)= A B of some tiles of k, C [32, 32]; next: the block below it, or NULL. */
static void multiply(word kind, const uint8_t *a, const uint8_t *b, int64_t tiles, bool add, int32_t *c, int64_t ldc,
                     const int32_t *next)
{
    oq_amx_take(add, c, 4 * ldc);
    if (kind == BF16)
        MULTIPLY(OQ_TILE_BF16)
    else
        MULTIPLY(OQ_TILE_U8S8)
    oq_amx_put(c, 4 * ldc);
}

static void copy_block(int32_t *to, int64_t to_ld, const int32_t *from, int64_t from_ld, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_ld, from + i * from_ld, sizeof *to * (size_t)columns);
}

/* The block of C at a row and a column; where it reaches over the edge, by way of a whole one. */
static void make_block(const job *j, packed *p, const uint8_t *a, const uint8_t *b, int64_t tiles, bool add,
                       int64_t row, int64_t column)
{
    const int64_t rows = oq_least(BLOCK, j->m - row), columns = oq_least(BLOCK, j->n - column);
    int32_t *c = j->c + row * j->ldc + column;
    if (rows == BLOCK && columns == BLOCK) {
        const bool is_last = row + 2 * BLOCK > j->m;
        multiply(j->kind, a, b, tiles, add, c, j->ldc, is_last ? NULL : c + BLOCK * j->ldc);
        return;
    }
    if (add) copy_block(p->c, BLOCK, c, j->ldc, rows, columns);
    multiply(j->kind, a, b, tiles, add, p->c, BLOCK, NULL);
    copy_block(c, j->ldc, p->c, BLOCK, rows, columns);
}

/* ---- all of it ------------------------------------------------------------------- */

/* Some rows and columns of C, a stretch of k; A is packed. Row by row, as C is written. */
static void add_columns(const job *j, packed *p, int64_t row, int64_t column, int64_t first, int64_t length)
{
    const int64_t rows = oq_least(TALL, j->m - row), columns = oq_least(WIDE, j->n - column);
    const oq_operand b = oq_part_of(j->b, column, columns, first, length);
    const int64_t tiles = oq_tiles_of(&b);
    oq_pack_columns(&b, p->b);
    for (int64_t r = 0; r < rows; r += BLOCK)
        for (int64_t c = 0; c < columns; c += BLOCK)
            make_block(j, p, p->a + r * tiles * OQ_AMX_BYTES, p->b + c * tiles * OQ_AMX_BYTES, tiles,
                       first > 0 || j->accumulate, row + r, column + c);
}

static void add_rows(const job *j, packed *p, int64_t row, int64_t first, int64_t length)
{
    const oq_operand a = oq_part_of(j->a, row, oq_least(TALL, j->m - row), first, length);
    oq_pack_rows(&a, p->a);
    for (int64_t column = 0; column < j->n; column += WIDE) add_columns(j, p, row, column, first, length);
}

static oq_code run(const job *j)
{
    packed *p = oq_scratch(sizeof *p);
    const int64_t each = oq_in_tile(&j->a), tiles = oq_pieces(j->k, each);
    const int64_t most = oq_is_float(&j->a) ? DEEP / OQ_FLOAT_TILES : DEEP;
    const int64_t deep = tiles ? oq_pieces(tiles, oq_pieces(tiles, most)) * each : 1; /* stretches are alike */
    if (!p) return OQ_OUT_OF_MEMORY;
    oq_amx_begin();
    for (int64_t row = 0; row < j->m; row += TALL)
        for (int64_t first = 0; first == 0 || first < j->k; first += deep)
            add_rows(j, p, row, first, oq_least(deep, j->k - first));
    oq_amx_end();
    return OQ_OK;
}

oq_code oq_bf16_amx(const oq_bf16_gemm_args *g)
{
    return run(&(job){.kind = BF16,
                      .accumulate = g->accumulate,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .ldc = g->ldc,
                      .a = {(const uint8_t *)g->a, 2 * g->lda, g->m, g->k, 2, g->transpose_a},
                      .b = {(const uint8_t *)g->b, 2 * g->ldb, g->n, g->k, 2, !g->transpose_b},
                      .c = (int32_t *)g->c});
}

oq_code oq_igemm_amx(const oq_igemm_args *g)
{
    return run(&(job){.kind = BYTES,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .ldc = g->ldc,
                      .a = {g->a, g->lda, g->m, g->k, 1, false},
                      .b = {(const uint8_t *)g->b, g->ldb, g->n, g->k, 1, false},
                      .c = g->c});
}

oq_code oq_sgemm_amx(const oq_gemm_args *g)
{
    OQ_TRY(run(&(job){.kind = BF16,
                      .accumulate = g->beta != 0,
                      .m = g->m,
                      .n = g->n,
                      .k = g->k,
                      .ldc = g->ldc,
                      .a = {(const uint8_t *)g->a, 4 * g->lda, g->m, g->k, 4, g->transpose_a},
                      .b = {(const uint8_t *)g->b, 4 * g->ldb, g->n, g->k, 4, !g->transpose_b},
                      .c = (int32_t *)g->c}));
    for (int64_t i = 0; i < g->m && g->alpha != 1; i++) oq_scale(g->c + i * g->ldc, g->alpha, g->n);
    return OQ_OK;
}

bool oq_bf16_amx_runs(void)
{
#ifdef OQ_DOUBLE
    return false;
#else
    return oq_cpu_features()->amx_bf16;
#endif
}

bool oq_igemm_amx_runs(void) { return oq_cpu_features()->amx_int8; }

#else

bool oq_bf16_amx_runs(void) { return false; }
bool oq_igemm_amx_runs(void) { return false; }

oq_code oq_bf16_amx(const oq_bf16_gemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

oq_code oq_igemm_amx(const oq_igemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

oq_code oq_sgemm_amx(const oq_gemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

#endif

bool oq_sgemm_amx_can(const oq_gemm_args *g)
{
    return oq_bf16_amx_runs() && (g->beta == 0 || (g->beta == 1 && g->alpha == 1)) && g->m >= 16 && g->n >= 16;
}
