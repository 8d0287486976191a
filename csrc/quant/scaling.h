/* Diagonal maps of a matrix, x~[r, c] = x[r, c] columns[c] rows[r], one row at a time: forward and backward. */
#ifndef OQ_QUANT_SCALING_H
#define OQ_QUANT_SCALING_H

#include "base/size.h"
#include "quant/lanes.h"

typedef struct {
    const oq_real *columns, *rows; /* [width], [rows]; NULL: ones */
} oq_scaling;

static inline bool oq_is_scaled(const oq_scaling *s) { return s->columns || s->rows; }
static inline oq_real oq_row_factor(const oq_scaling *s, int64_t row) { return s->rows ? s->rows[row] : 1; }

/* out [n] = x [n] behind its maps; columns: of these values, or NULL. */
OQ_INLINE void oq_scale_values(const oq_real *restrict columns, oq_real factor, const oq_real *restrict x,
                               oq_real *restrict out, int64_t n)
{
    if (columns)
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * columns[i] * factor;
    else
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor;
}

/* A row on its way back through its maps, some columns at a time. */
typedef struct {
    const oq_real *x, *columns; /* [width]; columns NULL: ones */
    oq_real factor;             /* of the row */
    oq_real *dx, *dcolumns;     /* [width]; dx NULL: not wanted; dcolumns is there where columns are */
    oq_real along[OQ_LANES];    /* of the factor, added to */
} oq_scaled_row;

/* along [OQ_LANES] += of so many values: a constant but at a run's end. */
OQ_INLINE void oq_scaling_lanes(const oq_real *x, const oq_real *columns, const oq_real *d, int64_t lanes,
                                oq_real *restrict along)
{
    for (int64_t j = 0; j < lanes; j++) along[j] += columns ? d[j] * x[j] * columns[j] : d[j] * x[j];
}

/* A loop for each gradient, so that the lanes of the first stay in registers. */
OQ_INLINE void oq_scaling_run(oq_scaled_row *row, const oq_real *restrict columns, oq_real *restrict dcolumns,
                              int64_t begin, const oq_real *restrict d, int64_t n)
{
    const oq_real *restrict x = row->x + begin;
    const oq_real factor = row->factor;
    oq_real along[OQ_LANES] = {0};
    int64_t i = 0;
    for (; i + OQ_LANES <= n; i += OQ_LANES)
        oq_scaling_lanes(x + i, OQ_AT(columns, i), d + i, OQ_LANES, along);
    oq_scaling_lanes(x + i, OQ_AT(columns, i), d + i, n - i, along);
    for (int j = 0; j < OQ_LANES; j++) row->along[j] += along[j];
    for (i = 0; dcolumns && i < n; i++) dcolumns[i] += d[i] * x[i] * factor;
    if (!row->dx) return;
    oq_real *restrict dx = row->dx + begin;
    for (i = 0; i < n; i++) dx[i] = d[i] * (columns ? columns[i] * factor : factor);
}

/* d [n], the gradient of the scaled values from `begin` on, goes to their factors and, where it is wanted, to x.  Made
 * twice, as no mask may stand before a NULL: see backward_run. */
OQ_INLINE void oq_scale_values_backward(oq_scaled_row *row, int64_t begin, const oq_real *d, int64_t n)
{
    if (row->columns)
        oq_scaling_run(row, row->columns + begin, row->dcolumns + begin, begin, d, n);
    else
        oq_scaling_run(row, NULL, NULL, begin, d, n);
}

#endif
