/* Scales and clipping by search instead of descent (AWQ, arXiv 2306.00978): for each site the exponent of the
 * activations' magnitudes, for each group of a row how far its range shrinks, that leave the least error
 *   sum over the linears of tr(D G D^T),  D = Q(W s) / s - W,  G the Gram matrix of their input. */
#ifndef OQ_CALIBRATE_SEARCH_H
#define OQ_CALIBRATE_SEARCH_H

#include "calibrate/gram.h"
#include "calibrate/initialize.h"

/* Set the maps of theta (but q <-> k's) and the clipping (but of q and k, whose errors meet in the scores, not in
 * their outputs) to the best of their grids. */
oq_code oq_search_start(oq_context *context, const oq_transformed *t, const oq_channel_stats *stats,
                        const oq_grams *grams, oq_real *theta);

#endif
