/* RMSNorm and LayerNorm over rows. */
#ifndef OQ_MATH_NORM_H
#define OQ_MATH_NORM_H

#include "base/context.h"
#include "base/real.h"

typedef enum { OQ_NORM_RMS, OQ_NORM_LAYER } oq_norm_kind;

typedef struct {
    oq_norm_kind kind;
    double eps;
    int64_t rows, width;
} oq_norm_shape;

typedef struct {
    oq_real mean, inverse_deviation; /* mean is 0 for RMSNorm */
} oq_norm_stats;

/* y [rows, width] = (x - mean) r * gain + bias; bias may be NULL; stats [rows]. */
void oq_norm_forward(const oq_context *context, oq_norm_shape shape, const oq_real *x, const oq_real *gain,
                     const oq_real *bias, oq_real *y, oq_norm_stats *stats);
/* dx [rows, width] += ..., dgain and dbias [width] += ...; each may be NULL. */
oq_code oq_norm_backward(oq_context *context, oq_norm_shape shape, const oq_real *x, const oq_real *gain,
                         const oq_norm_stats *stats, const oq_real *dy, oq_real *dx, oq_real *dgain,
                         oq_real *dbias);

#endif
