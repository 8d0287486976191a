/* The plain product, once for any floating-point type: define TILE_REAL and
 * TILE_GEMM (the function's name), then include.  No include guard on purpose.
 *
 *   C [m, n] = alpha * op(A) [m, k] * op(B) [k, n] + beta * C      row-major
 *
 * op(A) and op(B) are copied tile by tile into small arrays on the stack, which
 * takes care of transposes and of ragged edges (padded with zeros whose products
 * are thrown away), so the one inner loop is a fixed block of rows by lanes that
 * the compiler vectorises.  Nothing is allocated, nothing can fail. */

enum {
    TILE_ROWS = 8,   /* of C in registers at once */
    TILE_LANES = 32, /* columns of C in registers at once; 16 doubles gcc 12 leaves scalar */
    TILE_M = 64,
    TILE_N = 2 * TILE_LANES,
    TILE_K = 128
};

typedef struct {
    TILE_REAL a[TILE_M / TILE_ROWS][TILE_K][TILE_ROWS];
    TILE_REAL b[TILE_N / TILE_LANES][TILE_K][TILE_LANES];
} tile_pair;

typedef struct {
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    TILE_REAL alpha, beta;
    const TILE_REAL *a, *b;
    int64_t lda, ldb, ldc;
    TILE_REAL *c;
} tile_args;

static int64_t tile_left(int64_t total, int64_t start, int64_t most)
{
    return total - start < most ? total - start : most;
}

/* to [k, width] <- width rows of x (or columns when across) from `first`, k from k0; zeros beyond `valid`. */
static void tile_copy(TILE_REAL *restrict to, int64_t width, int64_t valid, const TILE_REAL *restrict x,
                      int64_t ld, bool across, int64_t first, int64_t k0, int64_t depth)
{
    if (across) {
        for (int64_t p = 0; p < depth; ++p) {
            for (int64_t j = 0; j < valid; ++j) to[p * width + j] = x[(k0 + p) * ld + first + j];
            for (int64_t j = valid; j < width; ++j) to[p * width + j] = 0;
        }
        return;
    }
    for (int64_t j = 0; j < valid; ++j) {
        for (int64_t p = 0; p < depth; ++p) to[p * width + j] = x[(first + j) * ld + k0 + p];
    }
    for (int64_t j = valid; j < width; ++j) {
        for (int64_t p = 0; p < depth; ++p) to[p * width + j] = 0;
    }
}

static void tile_pack_a(tile_pair *tiles, const tile_args *g, int64_t row, int64_t rows, int64_t k0, int64_t depth)
{
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        tile_copy(&tiles->a[i / TILE_ROWS][0][0], TILE_ROWS, tile_left(rows, i, TILE_ROWS), g->a, g->lda,
                  g->transpose_a, row + i, k0, depth);
    }
}

static void tile_pack_b(tile_pair *tiles, const tile_args *g, int64_t column, int64_t columns, int64_t k0,
                        int64_t depth)
{
    for (int64_t j = 0; j < columns; j += TILE_LANES) {
        tile_copy(&tiles->b[j / TILE_LANES][0][0], TILE_LANES, tile_left(columns, j, TILE_LANES), g->b, g->ldb,
                  !g->transpose_b, column + j, k0, depth);
    }
}

/* c [rows, columns] += alpha * a^T b, rows and columns at most one block. */
OQ_VECTORIZED static void tile_block(int64_t depth, TILE_REAL alpha, const TILE_REAL (*restrict a)[TILE_ROWS],
                                     const TILE_REAL (*restrict b)[TILE_LANES], TILE_REAL *restrict c, int64_t ldc,
                                     int64_t rows, int64_t columns)
{
    TILE_REAL sum[TILE_ROWS][TILE_LANES] = {{0}};
    for (int64_t p = 0; p < depth; ++p) {
        for (int i = 0; i < TILE_ROWS; ++i) {
            for (int j = 0; j < TILE_LANES; ++j) sum[i][j] += a[p][i] * b[p][j];
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) c[i * ldc + j] += alpha * sum[i][j];
    }
}

static void tile_scale(const tile_args *g)
{
    if (g->beta == 1) return;
    for (int64_t i = 0; i < g->m; ++i) {
        TILE_REAL *row = g->c + i * g->ldc;
        for (int64_t j = 0; j < g->n; ++j) row[j] = g->beta == 0 ? 0 : g->beta * row[j];
    }
}

/* One tile of C and one stretch of k, both already packed. */
static void tile_multiply(const tile_pair *tiles, const tile_args *g, int64_t row, int64_t rows, int64_t column,
                          int64_t columns, int64_t depth)
{
    for (int64_t j = 0; j < columns; j += TILE_LANES) {
        for (int64_t i = 0; i < rows; i += TILE_ROWS) {
            tile_block(depth, g->alpha, tiles->a[i / TILE_ROWS], tiles->b[j / TILE_LANES],
                       g->c + (row + i) * g->ldc + column + j, g->ldc, tile_left(rows, i, TILE_ROWS),
                       tile_left(columns, j, TILE_LANES));
        }
    }
}

static void TILE_GEMM(const tile_args *g)
{
    tile_pair tiles;
    tile_scale(g);
    for (int64_t k0 = 0; k0 < g->k; k0 += TILE_K) {
        const int64_t depth = tile_left(g->k, k0, TILE_K);
        for (int64_t column = 0; column < g->n; column += TILE_N) {
            const int64_t columns = tile_left(g->n, column, TILE_N);
            tile_pack_b(&tiles, g, column, columns, k0, depth);
            for (int64_t row = 0; row < g->m; row += TILE_M) {
                const int64_t rows = tile_left(g->m, row, TILE_M);
                tile_pack_a(&tiles, g, row, rows, k0, depth);
                tile_multiply(&tiles, g, row, rows, column, columns, depth);
            }
        }
    }
}
