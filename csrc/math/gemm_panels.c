#include "math/gemm_panels.h"

#include <stdatomic.h>

#include "base/parallel.h"
#include "base/size.h"

/* C is cut into panels of at most this many rows and columns, the longer side
 * finer.  On one Zen 4 core oneDNN loses 1 to 5 % to panels of 256, 5 to 15 % to
 * panels of 128 (B transposed suffers most: each panel packs it anew). */
enum { FINE = 256, COARSE = 1024 };

/* Products of fewer multiplications than this (some 20 us) stay in one piece. */
static const double SMALL = 1 << 20;

/* What products are made of side by side: a cut through one would cost its whole. */
enum { SIDE = 32 };

typedef struct {
    oq_panel_product run;
    const void *product;
    int64_t m, n;
    int64_t rows, columns; /* of a panel */
    int64_t across;        /* panels side by side */
    atomic_int failure;    /* the oq_code of a panel that failed */
} panels;

static void run_panel(void *user, int64_t item, int worker)
{
    (void)worker;
    panels *cut = user;
    const int64_t row = item / cut->across * cut->rows;
    const int64_t column = item % cut->across * cut->columns;
    const oq_panel panel = {row, cut->m - row < cut->rows ? cut->m - row : cut->rows, column,
                            cut->n - column < cut->columns ? cut->n - column : cut->columns};
    const oq_code code = cut->run(cut->product, panel);
    if (code != OQ_OK) atomic_store(&cut->failure, (int)code);
}

/* A power of two of equal pieces (so 2, 4, 8 threads share them evenly), each a
 * multiple of 16 long and at most `most`. */
static int64_t piece(int64_t length, int64_t most)
{
    int64_t pieces = 1;
    while (pieces * most < length) pieces *= 2;
    return ((length + pieces - 1) / pieces + 15) / 16 * 16;
}

static oq_code run_all(oq_context *context, panels *cut, int64_t k)
{
    cut->across = oq_pieces(cut->n, cut->columns);
    oq_parallel_for(context->threads, oq_pieces(cut->m, cut->rows) * cut->across, run_panel, cut);
    const oq_code code = (oq_code)atomic_load(&cut->failure);
    if (code == OQ_OK) return OQ_OK;
    return oq_fail(context, code, "a product of %lld x %lld by %lld x %lld failed", (long long)cut->m, (long long)k,
                   (long long)k, (long long)cut->n);
}

static bool is_small(int64_t m, int64_t n, int64_t k) { return (double)m * (double)n * (double)k < SMALL; }

oq_code oq_over_panels(oq_context *context, int64_t m, int64_t n, int64_t k, oq_panel_product run,
                       const void *product)
{
    if (m <= 0 || n <= 0) return OQ_OK;
    panels cut = {.run = run, .product = product, .m = m, .n = n, .rows = m, .columns = n};
    if (!is_small(m, n, k)) {
        cut.rows = piece(m, m >= n ? FINE : COARSE);
        cut.columns = piece(n, m >= n ? COARSE : FINE);
    }
    return run_all(context, &cut, k);
}

oq_code oq_over_threads(oq_context *context, int64_t m, int64_t n, int64_t k, oq_panel_product run,
                        const void *product)
{
    if (m <= 0 || n <= 0) return OQ_OK;
    panels cut = {.run = run, .product = product, .m = m, .n = n, .rows = m, .columns = n};
    const int64_t count = is_small(m, n, k) || context->threads == 1 ? 1 : 2 * context->threads;
    int64_t *longer = m >= n ? &cut.rows : &cut.columns;
    *longer = oq_pieces(oq_pieces(*longer, count), SIDE) * SIDE;
    return run_all(context, &cut, k);
}
