/* Which stages the weights of a linear pass: the maps that meet them, and which of those its quantizer applies. */
#ifndef OQ_CALIBRATE_STAGES_H
#define OQ_CALIBRATE_STAGES_H

#include "block/rotation.h"
#include "calibrate/transformed.h"

static inline bool oq_has_columns_map(const oq_transformed *t, int linear)
{
    return t->map[oq_sites_of(t->spec, linear).columns].kind != OQ_MAP_NONE;
}

static inline bool oq_has_rows_map(const oq_transformed *t, int linear)
{
    const int rows = oq_sites_of(t->spec, linear).rows;
    return rows >= 0 && t->map[rows].kind != OQ_MAP_NONE;
}

static inline bool oq_has_input_map(const oq_transformed *t) { return t->map[OQ_SITE_FACTORS].kind != OQ_MAP_NONE; }

/* A diagonal map is left to the quantizer.  Rows' factors commute with all that is done to columns; those of
 * columns do not with a rotation or a Kronecker map behind them. */
static inline bool oq_scales_rows(const oq_transformed *t, int linear)
{
    return oq_has_rows_map(t, linear) && !t->map[oq_sites_of(t->spec, linear).rows].square &&
           oq_quantizes(t->options, linear);
}

static inline bool oq_scales_columns(const oq_transformed *t, int linear)
{
    return oq_has_columns_map(t, linear) && !t->map[oq_sites_of(t->spec, linear).columns].square &&
           oq_quantizes(t->options, linear) && !oq_has_rotation(t->spec, linear) && !oq_has_input_map(t);
}

#endif
