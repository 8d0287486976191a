/* Where the learnables start: clipping at sigma(4), maps at SmoothQuant's scales, q <-> k and the factors of input
 * maps at the identity. */
#ifndef OQ_CALIBRATE_INITIALIZE_H
#define OQ_CALIBRATE_INITIALIZE_H

#include "calibrate/transformed.h"

/* Extremes of each channel of the inputs of the sites, over the full-precision stream. */
typedef struct {
    oq_real *lo[OQ_SITES], *hi[OQ_SITES]; /* [blocks * width]; NULL where maps start at 1 */
    double *magnitude[OQ_SITES];          /* the same: mean |x|, up to one factor for all */
} oq_channel_stats;

oq_code oq_channel_stats_create(oq_context *context, oq_channel_stats *stats, const oq_block_spec *spec);
/* Take in one window, as the full-precision forward pass saved it. */
void oq_channel_stats_add(oq_channel_stats *stats, const oq_block_run *run, const oq_saved *saved);

/* theta [list->total] at its start. */
oq_code oq_initialize(oq_context *context, const oq_transformed *t, const oq_channel_stats *stats, oq_real *theta);
/* theta of plain round-to-nearest: no clipping, identity maps, no shifts. */
void oq_initialize_rtn(const oq_transformed *t, oq_real *theta);

/* The pieces of both, for a single layer. */
void oq_fill_clipping(const oq_learnables *list, double value, oq_real *theta);
/* SmoothQuant's start of a map, and of its shift unless NULL: lo, hi [blocks n] of the input's channels, largest
 * [blocks n] = max |W_ij| over the consumers' rows. */
oq_code oq_initialize_map(oq_context *context, const oq_map *map, const oq_real *lo, const oq_real *hi,
                          const double *largest, double alpha, oq_real *parameters, oq_real *shift);

#endif
