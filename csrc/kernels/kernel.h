/* The one table of kernels: what a kernel is, and what it is handed. */
#ifndef OQ_KERNELS_KERNEL_H
#define OQ_KERNELS_KERNEL_H

#include "kernels/layout.h"

/* Some rows of activations times some tiles of one panel, over all inputs:
 *   sums [rows, OQ_PANEL] = sum over groups of float(T) scale,  T = sum (a - z_a)(w - z_w), an exact integer.
 * Float activations come as three planes, three rows each: T = 65536 T2 + 256 T1 + T0, rounded to float from the
 * left, times x's scale of the group; then sums has a row for every three. */
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
    const float *x_scales; /* [rows / 3, groups]; NULL unless float */
    int64_t a_stride;
    float *sums;
} oq_tiles;

typedef struct oq_kernel {
    const char *name;
    bool (*available)(void);
    int most_rows; /* a multiple of 3 */
    void (*multiply)(const oq_tiles *args, int rows, int tiles);
} oq_kernel;

extern const oq_kernel oq_kernel_reference, oq_kernel_avx2, oq_kernel_avx512_vnni;

/* The kernel of a name, the default for NULL; NULL where there is none or it cannot run here. */
const oq_kernel *oq_kernel_find(const char *name);

#endif
