/* Measured on one Zen 3 core, GFLOP/s of oneDNN's dnnl_sgemm / of this when it still packed B anew for every 264 rows
 * (once for all, with k cut evenly, gives another 8 %), m = 512, as linears multiply:
 *
 *      (k, n)        forward N T   backward N N   backward T N
 *      576, 1536        67 / 85       72 / 87        51 / 84
 *      2048, 5632       74 / 88       42 / 87        33 / 85                                                   */
#include "math/sgemm_avx2.h"

#include "base/cpu.h"
#include "base/scratch.h"
#include "base/size.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32) && !defined(OQ_DOUBLE)

#include "math/blocks.h"
#include "math/transpose_avx2.h"

enum {
    ROWS = 6,    /* of C in registers: 12 accumulators, two vectors of B and one of A fill the 16 there are */
    LANES = 16,  /* columns of C in registers */
    DEEP = 320,  /* of k at a time: a sliver of B takes 20 KiB */
    TALL = 240,  /* rows of A at a time: 300 KiB */
    WIDE = 1024, /* columns of B at a time */
    SLACK = 2    /* what the last store of a transposed block writes too much */
};

typedef struct {
    float a[TALL * DEEP + SLACK]; /* [slivers][depth][ROWS] */
    float b[WIDE * DEEP];         /* [slivers][depth][LANES] */
} packed;

typedef struct {
    const oq_gemm_args *product;
    packed *packed;
} job;

/* ---- packing ---------------------------------------------------------------- */

/* to [8 of k, 8 rows], `width` apart, of 8 of k of some rows; the lanes of missing rows are zeros. */
INLINE void transpose_block(float *to, const int width, const float *x, int64_t ld, const int rows)
{
    __m256 in[8], out[8];
    UNROLL for (int j = 0; j < 8; j++) in[j] = j < rows ? _mm256_loadu_ps(x + j * ld) : _mm256_setzero_ps();
    oq_transpose_8x8(in, out);
    UNROLL for (int p = 0; p < 8; p++) _mm256_storeu_ps(to + p * width, out[p]);
}

/* to [depth, width] <- `valid` lanes, zeros behind them; lane j of step p is x[j ld + p], or x[p ld + j] across. */
static void pack_ragged(float *to, int64_t width, int64_t valid, const float *x, int64_t ld, bool across,
                        int64_t begin, int64_t depth)
{
    for (int64_t p = begin; p < depth; p++)
        for (int64_t j = 0; j < width; j++)
            to[p * width + j] = j >= valid ? 0 : across ? x[p * ld + j] : x[j * ld + p];
}

/* The same for full slivers. `readable`: lanes that may be read across. */
AVX2 static void pack_rows(float *to, const float *x, int64_t ld, bool across, int64_t readable, int64_t depth)
{
    int64_t p = 0;
    if (!across)
        for (; p + 8 <= depth; p += 8) transpose_block(to + p * ROWS, ROWS, x + p, ld, ROWS);
    else if (readable >= 8)
        for (; p < depth; p++) _mm256_storeu_ps(to + p * ROWS, _mm256_loadu_ps(x + p * ld));
    pack_ragged(to, ROWS, ROWS, x, ld, across, p, depth);
}

AVX2 static void pack_lanes(float *to, const float *x, int64_t ld, bool across, int64_t depth)
{
    int64_t p = 0;
    if (!across)
        for (; p + 8 <= depth; p += 8) {
            transpose_block(to + p * LANES, LANES, x + p, ld, 8);
            transpose_block(to + p * LANES + 8, LANES, x + 8 * ld + p, ld, 8);
        }
    else
        for (; p < depth; p++) {
            _mm256_storeu_ps(to + p * LANES, _mm256_loadu_ps(x + p * ld));
            _mm256_storeu_ps(to + p * LANES + 8, _mm256_loadu_ps(x + p * ld + 8));
        }
    pack_ragged(to, LANES, LANES, x, ld, across, p, depth);
}

static void pack_a(void *user, const oq_block_place *at)
{
    const job *j = user;
    const oq_gemm_args *g = j->product;
    for (int64_t i = 0; i < at->rows; i += ROWS) {
        const int64_t row = at->row + i, left = at->rows - i;
        const float *x = g->transpose_a ? g->a + at->k0 * g->lda + row : g->a + row * g->lda + at->k0;
        float *to = j->packed->a + i * at->depth;
        if (left >= ROWS)
            pack_rows(to, x, g->lda, g->transpose_a, left, at->depth);
        else
            pack_ragged(to, ROWS, left, x, g->lda, g->transpose_a, 0, at->depth);
    }
}

static void pack_b(void *user, const oq_block_place *at)
{
    const job *j = user;
    const oq_gemm_args *g = j->product;
    for (int64_t i = 0; i < at->columns; i += LANES) {
        const int64_t column = at->column + i, left = at->columns - i;
        const float *x = g->transpose_b ? g->b + column * g->ldb + at->k0 : g->b + at->k0 * g->ldb + column;
        float *to = j->packed->b + i * at->depth;
        if (left >= LANES)
            pack_lanes(to, x, g->ldb, !g->transpose_b, at->depth);
        else
            pack_ragged(to, LANES, left, x, g->ldb, !g->transpose_b, 0, at->depth);
    }
}

/* ---- the tile ---------------------------------------------------------------- */

INLINE void multiply(int64_t depth, const float *a, const float *b, __m256 sum[ROWS][2])
{
    UNROLL for (int i = 0; i < ROWS; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    REPEAT4 for (int64_t p = 0; p < depth; p++, a += ROWS, b += LANES)
    {
        const __m256 low = _mm256_loadu_ps(b), high = _mm256_loadu_ps(b + 8);
        UNROLL for (int i = 0; i < ROWS; i++)
        {
            const __m256 x = _mm256_broadcast_ss(a + i);
            sum[i][0] = _mm256_fmadd_ps(x, low, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(x, high, sum[i][1]);
        }
    }
}

/* c [ROWS, LANES] = keep c + alpha a^T b; keep = 0 never reads c. */
AVX2 static void add_tile(int64_t depth, const float *a, const float *b, float alpha, float keep, float *c,
                          int64_t ldc)
{
    __m256 sum[ROWS][2];
    UNROLL for (int i = 0; i < ROWS; i++) _mm_prefetch((const char *)(c + i * ldc), _MM_HINT_T0);
    multiply(depth, a, b, sum);
    UNROLL for (int i = 0; i < ROWS; i++)
    {
        UNROLL for (int half = 0; half < 2; half++)
        {
            float *to = c + i * ldc + 8 * half;
            __m256 y = _mm256_mul_ps(sum[i][half], _mm256_set1_ps(alpha));
            if (keep != 0) y = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(to), _mm256_set1_ps(keep)), y);
            _mm256_storeu_ps(to, y);
        }
    }
}

/* The same where C ends within the tile. */
static void add_edge(int64_t depth, const float *a, const float *b, float alpha, float keep, float *c, int64_t ldc,
                     int64_t rows, int64_t columns)
{
    float tile[ROWS * LANES];
    add_tile(depth, a, b, alpha, 0, tile, LANES);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            c[i * ldc + j] = (keep != 0 ? keep * c[i * ldc + j] : 0) + tile[i * LANES + j];
}

static void run_tile(void *user, const oq_block_place *at, int64_t i, int64_t j)
{
    const job *own = user;
    const oq_gemm_args *g = own->product;
    const int64_t rows = oq_least(ROWS, at->rows - i), columns = oq_least(LANES, at->columns - j);
    const float *a = own->packed->a + i * at->depth, *b = own->packed->b + j * at->depth;
    const float keep = at->k0 == 0 ? g->beta : 1;
    float *c = g->c + (at->row + i) * g->ldc + at->column + j;
    if (rows == ROWS && columns == LANES)
        add_tile(at->depth, a, b, g->alpha, keep, c, g->ldc);
    else
        add_edge(at->depth, a, b, g->alpha, keep, c, g->ldc, rows, columns);
}

oq_code oq_sgemm_avx2(const oq_gemm_args *g)
{
    const oq_blocks blocks = {.m = g->m,
                              .n = g->n,
                              .k = g->k,
                              .tall = TALL,
                              .wide = WIDE,
                              .deep = DEEP,
                              .unit = 8,
                              .high = ROWS,
                              .lanes = LANES,
                              .pack_a = pack_a,
                              .pack_b = pack_b,
                              .tile = run_tile};
    job j = {g, oq_scratch(sizeof(packed))};
    if (!j.packed) return OQ_OUT_OF_MEMORY;
    if (g->k == 0) oq_gemm_reference(g);
    oq_in_blocks(&blocks, &j);
    return OQ_OK;
}

bool oq_sgemm_avx2_runs(void) { return oq_cpu_features()->avx2; }

bool oq_sgemm_avx2_pays(const oq_gemm_args *g)
{
    /* Of fewer rows than this copying B takes longer than multiplying it. */
    enum { FEW = 16 };
    const oq_cpu *cpu = oq_cpu_features();
    return cpu->avx2 && !cpu->avx512f && g->m >= FEW && g->k > 0;
}

#else

bool oq_sgemm_avx2_runs(void) { return false; }

bool oq_sgemm_avx2_pays(const oq_gemm_args *args)
{
    (void)args;
    return false;
}

oq_code oq_sgemm_avx2(const oq_gemm_args *args)
{
    oq_gemm_reference(args);
    return OQ_OK;
}

#endif
