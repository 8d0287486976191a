/* The plain twin: what every other kernel is compared with, and what serves where there is none. */
#include <string.h>

#include "kernels/kernel.h"

enum { ROWS = 3 };

/* quads [unit / 4][16 outputs][4 inputs] of a unit. */
static void unpack_unit(const uint8_t *unit, int64_t quads, int bits, uint8_t (*to)[64])
{
    for (int64_t j = 0; j < quads; j++)
        for (int i = 0; i < 64; i++) {
            if (bits == 3)
                to[j][i] = (uint8_t)((unit[j / 4 * 64 + i] >> (j % 4 * 2) & 3) | (unit[128 + i] >> j & 1) << 2);
            else
                to[j][i] = (uint8_t)(unit[i] >> (j * bits) & ((1 << bits) - 1));
        }
}

/* sums [16] += quad [16, 4] a [4] */
static void add_quad(const uint8_t quad[64], const int8_t *a, int32_t sums[OQ_TILE])
{
    for (int lane = 0; lane < OQ_TILE; lane++)
        for (int b = 0; b < 4; b++) sums[lane] += quad[4 * lane + b] * a[b];
}

typedef struct {
    const uint8_t *codes;
    const int8_t *a;
    const int32_t *pair;
    const int16_t *sums;
    const uint8_t *zeros;
} cursor;

/* One segment of a tile: total [rows, 16] += sum (a' - z')(w - z), from the plain sum and both corrections. */
static void add_segment(const oq_tiles *t, const cursor *c, int64_t units, int rows, int32_t (*total)[OQ_TILE])
{
    const int64_t quads = t->layout->unit / 4, stride = t->width / OQ_TILE * t->layout->unit_bytes;
    uint8_t unpacked[OQ_MOST_UNIT / 4][64];
    for (int64_t u = 0; u < units; u++) {
        unpack_unit(c->codes + u * stride, quads, t->layout->stored_bits, unpacked);
        for (int r = 0; r < rows; r++)
            for (int64_t j = 0; j < quads; j++)
                add_quad(unpacked[j], c->a + r * t->a_stride + 4 * (u * quads + j), total[r]);
    }
    for (int r = 0; r < rows; r++) {
        const int32_t pair = c->pair[r * t->layout->segments];
        const int minus_z = (int16_t)(pair & 0xffff), minus_sum = (int16_t)(pair >> 16);
        for (int lane = 0; lane < OQ_TILE; lane++)
            total[r][lane] += minus_z * c->sums[lane] + minus_sum * c->zeros[lane];
    }
}

/* What a run adds to the sums of a tile. */
static void flush(const oq_tiles *t, int64_t g, int rows, int32_t (*total)[OQ_TILE], float *sums, int tile)
{
    const float *scale = t->scales + g * t->width + tile * OQ_TILE;
    for (int lane = 0; lane < OQ_TILE; lane++) {
        if (!t->x_scales) {
            for (int r = 0; r < rows; r++) sums[r * OQ_PANEL + lane] += (float)total[r][lane] * scale[lane];
            continue;
        }
        const float high = (float)total[0][lane] * 256.0f + (float)total[1][lane];
        const float sum = (high * 256.0f + (float)total[2][lane]) * t->x_scales[g];
        sums[lane] += sum * scale[lane];
    }
}

static void multiply_tile(const oq_tiles *t, int rows, int tile)
{
    const oq_layout *l = t->layout;
    const int64_t stride = t->width / OQ_TILE * l->unit_bytes;
    cursor c = {t->codes + tile * l->unit_bytes, t->a, t->pairs, t->code_sums + tile * OQ_TILE,
                t->zeros + tile * OQ_TILE};
    for (int64_t g = 0; g < l->groups; g++) {
        const int64_t length = oq_group_length(l, g);
        int32_t total[ROWS][OQ_TILE] = {{0}};
        for (int64_t done = 0; done < length; done += OQ_SEGMENT) {
            const int64_t units = oq_segment_units(l, oq_least(OQ_SEGMENT, length - done));
            add_segment(t, &c, units, rows, total);
            c.codes += units * stride;
            c.a += units * l->unit;
            c.pair++;
            c.sums += t->width;
            if (done + OQ_SEGMENT < length && (done + OQ_SEGMENT) % OQ_RUN != 0) continue;
            flush(t, g, rows, total, t->sums + tile * OQ_TILE, tile);
            memset(total, 0, sizeof total);
        }
        c.zeros += t->zero_stride;
    }
}

static void multiply(const oq_tiles *t, int rows, int tiles)
{
    memset(t->sums, 0, (size_t)(t->x_scales ? rows / 3 : rows) * OQ_PANEL * sizeof(float));
    for (int tile = 0; tile < tiles; tile++) multiply_tile(t, rows, tile);
}

static bool always(void) { return true; }

const oq_kernel oq_kernel_reference = {"reference", always, ROWS, multiply};
