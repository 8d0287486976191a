/* oneDNN's product of bytes, for many rows: a panel's codes are unpacked some inputs at a time and multiplied with
 * all rows at once. Ours were faster on every processor they met, so it runs where it is asked for by name. */
#include <string.h>

#include "kernels/plain.h"
#include "math/onednn.h"

enum { STEP = 512 }; /* inputs unpacked at a time: a multiple of every unit */

/* w [lanes, STEP] of some units, as signed bytes: less 128 where codes have 8 bits. */
static void unpack(const oq_tiles *t, int64_t unit, int64_t units, int tiles, int8_t (*w)[STEP])
{
    const oq_layout *l = t->layout;
    const int shift = l->stored_bits == 8 ? 128 : 0;
    uint8_t quads[OQ_MOST_UNIT / 4][64];
    for (int64_t u = 0; u < units; u++)
        for (int tile = 0; tile < tiles; tile++) {
            oq_unpack_unit(l, t->codes + (unit + u) * oq_unit_stride(t) + tile * l->unit_bytes, quads);
            for (int64_t k = 0; k < l->unit; k++)
                for (int lane = 0; lane < OQ_TILE; lane++)
                    w[tile * OQ_TILE + lane][u * l->unit + k] = (int8_t)(quads[k / 4][4 * lane + k % 4] - shift);
        }
}

OQ_VECTORIZED static void add(int rows, int lanes, int32_t (*part)[OQ_PANEL], int32_t (*total)[OQ_PANEL])
{
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < lanes; i++) total[r][i] += part[r][i];
}

/* What was taken from the codes is given back: 128 sum(a'), of all outputs alike. */
static void add_shift(const oq_tiles *t, const oq_run *run, int rows, int lanes, int32_t (*total)[OQ_PANEL])
{
    for (int r = 0; r < rows; r++) {
        int32_t sum = 0;
        for (int64_t s = 0; s < run->segments; s++) {
            const int32_t pair = t->pairs[r * t->layout->segments + run->segment + s];
            const int32_t inputs = (int32_t)oq_least(OQ_SEGMENT, run->length - s * OQ_SEGMENT);
            sum -= (int16_t)(pair >> 16) + inputs * (int16_t)(pair & 0xffff);
        }
        for (int i = 0; i < lanes; i++) total[r][i] += 128 * sum;
    }
}

static oq_code multiply_run(const oq_tiles *t, const oq_run *run, int rows, int tiles)
{
    const oq_layout *l = t->layout;
    const int lanes = tiles * OQ_TILE;
    int32_t total[OQ_MOST_ROWS][OQ_PANEL] = {{0}}, part[OQ_MOST_ROWS][OQ_PANEL];
    int8_t w[OQ_PANEL][STEP];
    for (int64_t done = 0, units; done < run->units; done += units) {
        const int64_t unit = run->unit + done;
        units = oq_least(STEP / l->unit, run->units - done);
        unpack(t, unit, units, tiles, w);
        OQ_TRY(oq_onednn_igemm(true, rows, lanes, units * l->unit, t->a + unit * l->unit, t->a_stride, w[0], STEP,
                               part[0], OQ_PANEL));
        add(rows, lanes, part, total);
    }
    if (l->stored_bits == 8) add_shift(t, run, rows, lanes, total);
    oq_finish_run(t, run, rows, lanes, total);
    return OQ_OK;
}

static oq_code multiply(const oq_tiles *t, int rows, int tiles)
{
    oq_run run = {0};
    memset(t->sums, 0, (size_t)rows * OQ_PANEL * sizeof(float));
    while (oq_next_run(t->layout, &run)) OQ_TRY(multiply_run(t, &run, rows, tiles));
    return OQ_OK;
}

const oq_kernel oq_kernel_onednn = {"onednn", oq_onednn_has_igemm, OQ_MOST_ROWS, 1, multiply};
