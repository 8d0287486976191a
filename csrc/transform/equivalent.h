/* Both sides of one linear y = x W^T + b under a map of its input, so that y stays (OmniQuant eq. 3,
 * AffineQuant eq. 4):
 *   X~ = (X - delta) A^-1,   W~ = W A^T (oq_map_columns),   b~ = b + W delta
 * N rows, K = in = blocks n, M = out. */
#ifndef OQ_TRANSFORM_EQUIVALENT_H
#define OQ_TRANSFORM_EQUIVALENT_H

#include "transform/map.h"

/* centered [N, K] = x - shift (x itself is copied when shift is NULL). */
void oq_center(const oq_real *x, const oq_real *shift, oq_real *centered, int64_t rows, int64_t width);
/* out [N, K] = centered A^-1; a map of kind none copies. out != centered. */
oq_code oq_map_input(oq_context *context, const oq_map *map, const oq_real *centered, oq_real *out, int64_t rows);
/* map->dinverse += ...; dx [N, K] is overwritten, dx != dout. */
oq_code oq_map_input_backward(oq_context *context, oq_map *map, const oq_real *centered, const oq_real *dout,
                              oq_real *dx, int64_t rows);
/* dshift [K] -= column sums of dx [N, K]. */
oq_code oq_center_backward(oq_context *context, const oq_real *dx, oq_real *dshift, int64_t rows, int64_t width);

/* out [M] = bias + W shift; bias may be NULL. */
oq_code oq_shifted_bias(oq_context *context, const oq_real *w, const oq_real *shift, const oq_real *bias,
                        oq_real *out, int64_t rows, int64_t width);
/* dshift [K] += W^T dbias; dw [M, K] += dbias shift^T unless NULL. */
oq_code oq_shifted_bias_backward(oq_context *context, const oq_real *w, const oq_real *shift, const oq_real *dbias,
                                 oq_real *dshift, oq_real *dw, int64_t rows, int64_t width);

#endif
