/* The one table of kernels: what a kernel is, and what it is handed. */
#ifndef OQ_KERNELS_KERNEL_H
#define OQ_KERNELS_KERNEL_H

#include "kernels/layout.h"

/* Some rows of activations times some tiles of one panel, over all inputs:
 *   sums [rows, OQ_PANEL] = sum over runs of float(T) scale,  T = sum (a - z_a)(w - z_w), an exact integer.
 * Activations in fixed point come as two or three planes, as many rows each, and sums has a row for all of them:
 *   sum over segments of float(T) scale x_scale,  T = 256 T1 + T0, exact, or 65536 T2 + 256 T1 + T0, rounded to
 * float from the left. */
typedef struct {
    const oq_layout *layout;
    const uint8_t *codes; /* of the first tile */
    const float *scales;
    const int16_t *code_sums;
    const uint8_t *zeros; /* of group g at g * zero_stride; the stride is 0 where all are the same */
    int64_t zero_stride;
    int64_t width;         /* outputs of the panel: the stride of scales and code_sums */
    const int8_t *a;       /* [rows, a_stride] */
    const int32_t *pairs;  /* [rows, segments] */
    const float *x_scales; /* [rows / planes, segments]; NULL for one plane */
    int planes;
    int64_t a_stride;
    float *sums;
} oq_tiles;

/* Inputs whose products fit 32 bits together: a group, or a stretch of a long one. */
typedef struct {
    int64_t group, done, length; /* inputs of the group before it, and its own */
    int64_t segment, segments;
    int64_t unit, units;
} oq_run;

/* From zeros to the first run, from a run to the next; false behind the last. */
static inline bool oq_next_run(const oq_layout *l, oq_run *run)
{
    run->done += run->length;
    run->segment += run->segments;
    run->unit += run->units;
    if (run->done > 0 && run->done == oq_group_length(l, run->group)) {
        run->group++;
        run->done = 0;
    }
    if (run->group == l->groups) return false;
    run->length = oq_least(l->run, oq_group_length(l, run->group) - run->done);
    run->segments = oq_pieces(run->length, OQ_SEGMENT);
    run->units = oq_segment_units(l, run->length); /* whole segments are whole units */
    return true;
}

/* Bytes from a unit of a tile to the next one's. */
static inline int64_t oq_unit_stride(const oq_tiles *t) { return t->width / OQ_TILE * t->layout->unit_bytes; }

typedef struct oq_kernel {
    const char *name;
    bool (*available)(void);
    int most_rows; /* a multiple of 6, or 3 */
    int row_step;  /* of activations: others than multiples waste some */
    oq_code (*multiply)(const oq_tiles *args, int rows, int tiles);
} oq_kernel;

/* Of an instruction set that this was not compiled for. */
bool oq_kernel_never(void);
#define OQ_ABSENT_KERNEL(name) {name, oq_kernel_never, 3, 1, NULL}

/* As oq_qlinear_quantize for rows from `first` of x. */
oq_code oq_activations_make(oq_context *context, const oq_qlinear *linear, const float *x, int64_t first,
                            int64_t rows, oq_activations *to);

extern const oq_kernel oq_kernel_reference, oq_kernel_avx2, oq_kernel_avx512_vnni, oq_kernel_amx,
    oq_kernel_onednn;

enum { OQ_MOST_ROWS = 192 }; /* of any kernel */

#endif
