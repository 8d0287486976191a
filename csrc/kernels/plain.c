#include "kernels/plain.h"

void oq_unpack_unit(const oq_layout *layout, const uint8_t *unit, uint8_t (*quads)[64])
{
    const int bits = layout->stored_bits;
    for (int j = 0; j < layout->unit / 4; j++)
        for (int i = 0; i < 64; i++) {
            if (bits == 3)
                quads[j][i] = (uint8_t)((unit[j / 4 * 64 + i] >> (j % 4 * 2) & 3) | (unit[128 + i] >> j & 1) << 2);
            else
                quads[j][i] = (uint8_t)(unit[i] >> (j * bits) & ((1 << bits) - 1));
        }
}

/* -z_a sum(w) - z_w sum(a - z_a) of each segment. */
OQ_VECTORIZED static void correct(const oq_tiles *t, const oq_run *run, int rows, int lanes,
                                  int32_t (*total)[OQ_PANEL])
{
    const uint8_t *zeros = t->zeros + run->group * t->zero_stride;
    for (int r = 0; r < rows; r++)
        for (int64_t s = run->segment; s < run->segment + run->segments; s++) {
            const int32_t pair = t->pairs[r * t->layout->segments + s];
            const int32_t minus_z = (int16_t)(pair & 0xffff), minus_sum = (int16_t)(pair >> 16);
            const int16_t *sums = t->code_sums + s * t->width;
            for (int i = 0; i < lanes; i++) total[r][i] += minus_z * sums[i] + minus_sum * zeros[i];
        }
}

OQ_VECTORIZED static void add_scaled(const oq_tiles *t, const oq_run *run, int rows, int lanes,
                                     int32_t (*total)[OQ_PANEL])
{
    const float *scale = t->scales + run->group * t->width;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < lanes; i++) t->sums[r * OQ_PANEL + i] += (float)total[r][i] * scale[i];
}

/* The planes of output i. */
OQ_INLINE float join(int32_t (*total)[OQ_PANEL], int planes, int i)
{
    if (planes == 2) return (float)(total[0][i] * 256 + total[1][i]);
    return ((float)total[0][i] * 256.0f + (float)total[1][i]) * 256.0f + (float)total[2][i];
}

OQ_VECTORIZED static void add_planes(const oq_tiles *t, const oq_run *run, int rows, int lanes,
                                     int32_t (*total)[OQ_PANEL])
{
    const float *scale = t->scales + run->group * t->width;
    for (int r = 0; r < rows / t->planes; r++, total += t->planes) {
        const float x_scale = t->x_scales[r * t->layout->segments + run->segment];
        for (int i = 0; i < lanes; i++) t->sums[r * OQ_PANEL + i] += join(total, t->planes, i) * scale[i] * x_scale;
    }
}

void oq_finish_run(const oq_tiles *t, const oq_run *run, int rows, int lanes, int32_t (*total)[OQ_PANEL])
{
    correct(t, run, rows, lanes, total);
    if (t->planes > 1)
        add_planes(t, run, rows, lanes, total);
    else
        add_scaled(t, run, rows, lanes, total);
}
