/* Diagonal maps of a matrix, x~[r, c] = x[r, c] columns[c] rows[r], one row at a time: forward and backward. */
#ifndef OQ_QUANT_SCALING_H
#define OQ_QUANT_SCALING_H

#include "base/real.h"

typedef struct {
    const oq_real *columns, *rows; /* [width], [rows]; NULL: ones */
} oq_scaling;

/* Of the factors that are there: added to.  Those of columns are for a few dozen rows, to be summed in double. */
typedef struct {
    oq_real *columns;
    double *rows;
} oq_scaling_gradients;

static inline bool oq_is_scaled(const oq_scaling *s) { return s->columns || s->rows; }

/* out [width] = row x behind its maps. */
OQ_INLINE void oq_scale_values(const oq_scaling *s, int64_t row, const oq_real *restrict x, oq_real *restrict out,
                               int64_t width)
{
    const oq_real factor = s->rows ? s->rows[row] : 1;
    const oq_real *columns = s->columns;
    if (columns)
        for (int64_t i = 0; i < width; i++) out[i] = x[i] * columns[i] * factor;
    else
        for (int64_t i = 0; i < width; i++) out[i] = x[i] * factor;
}

enum { OQ_SCALING_LANES = 16 }; /* partial sums kept apart, whatever the ISA */

/* sums += of so many values: a constant but at a row's end. */
OQ_INLINE void oq_scaling_lanes(const oq_real *restrict x, const oq_real *restrict columns, oq_real factor,
                                const oq_real *restrict d, oq_real *restrict dcolumns, int64_t lanes,
                                oq_real *restrict sums)
{
    for (int64_t j = 0; j < lanes; j++) {
        const oq_real along = d[j] * x[j];
        sums[j] += columns ? along * columns[j] : along;
        if (dcolumns) dcolumns[j] += along * factor;
    }
}

/* d [width], the gradient of the scaled row, becomes that of x where that is wanted; returns that of the row's
 * factor.  columns and dcolumns are NULL together. */
OQ_INLINE double oq_scale_run_backward(const oq_real *restrict x, const oq_real *restrict columns, oq_real factor,
                                       bool wanted, oq_real *restrict d, oq_real *restrict dcolumns, int64_t width)
{
    enum { LANES = OQ_SCALING_LANES };
    oq_real sums[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        oq_scaling_lanes(x + i, columns ? columns + i : NULL, factor, d + i, dcolumns ? dcolumns + i : NULL, LANES,
                         sums);
    oq_scaling_lanes(x + i, columns ? columns + i : NULL, factor, d + i, dcolumns ? dcolumns + i : NULL, width - i,
                     sums);
    for (i = 0; wanted && i < width; i++) d[i] *= columns ? columns[i] * factor : factor;
    double total = 0;
    for (int j = 0; j < LANES; j++) total += (double)sums[j];
    return total;
}

/* Made twice, as no mask may stand before a NULL: see backward_run. */
OQ_INLINE void oq_scale_values_backward(const oq_scaling *s, const oq_scaling_gradients *g, int64_t row,
                                        const oq_real *x, bool wanted, oq_real *d, int64_t width)
{
    const oq_real factor = s->rows ? s->rows[row] : 1;
    const double along = s->columns ? oq_scale_run_backward(x, s->columns, factor, wanted, d, g->columns, width)
                                    : oq_scale_run_backward(x, NULL, factor, wanted, d, NULL, width);
    if (s->rows) g->rows[row] += along;
}

#endif
