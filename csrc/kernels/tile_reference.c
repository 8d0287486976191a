/* The plain twin: what every other kernel is compared with, and what serves where there is none. */
#include <string.h>

#include "kernels/plain.h"

enum { ROWS = 6 };

/* total [16] += quad [16, 4] a [4] */
OQ_VECTORIZED static void add_quad(const uint8_t quad[64], const int8_t a[4], int32_t total[OQ_TILE])
{
    for (int lane = 0; lane < OQ_TILE; lane++)
        for (int b = 0; b < 4; b++) total[lane] += quad[4 * lane + b] * a[b];
}

/* total [rows, 16] of one tile: sums of products over a run. */
static void add_run(const oq_tiles *t, const oq_run *run, int rows, int tile, int32_t (*total)[OQ_PANEL])
{
    const oq_layout *l = t->layout;
    const uint8_t *codes = t->codes + run->unit * oq_unit_stride(t) + tile * l->unit_bytes;
    const int8_t *a = t->a + run->unit * l->unit;
    uint8_t quads[OQ_MOST_UNIT / 4][64];
    for (int64_t u = 0; u < run->units; u++, codes += oq_unit_stride(t), a += l->unit) {
        oq_unpack_unit(l, codes, quads);
        for (int r = 0; r < rows; r++)
            for (int64_t j = 0; j < l->unit / 4; j++)
                add_quad(quads[j], a + r * t->a_stride + 4 * j, total[r] + tile * OQ_TILE);
    }
}

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    oq_run run = {0};
    memset(t->sums, 0, (size_t)rows * OQ_PANEL * sizeof(float));
    while (oq_next_run(t->layout, &run)) {
        int32_t total[ROWS][OQ_PANEL] = {{0}};
        for (int tile = 0; tile < tiles; tile++) add_run(t, &run, rows, tile, total);
        oq_finish_run(t, &run, rows, tiles * OQ_TILE, total);
    }
    return OQ_OK;
}

static bool always(void) { return true; }

const oq_kernel oq_kernel_reference = {"reference", always, ROWS, 1, multiply};
