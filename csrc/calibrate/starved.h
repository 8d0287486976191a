/* Experts that see too few tokens to learn from: their clipping is the one of a grid that moves their weights least,
 * which takes no data, and stays there; their rounding stays nearest.
 *
 * The squared error of a row's outputs, measured on n tokens, is off by sqrt(2 / n) of itself: at 32 tokens by a
 * quarter, and below it what training would learn is those tokens. */
#ifndef OQ_CALIBRATE_STARVED_H
#define OQ_CALIBRATE_STARVED_H

#include "calibrate/transformed.h"

enum { OQ_LEAST_TOKENS = 32 };

/* tokens [E] += those of one window, as a forward pass routed them. */
void oq_count_tokens(const oq_block_run *run, const oq_saved *saved, int32_t *tokens);
/* The clipping in theta of starved experts; applies theta. */
oq_code oq_clip_starved(oq_context *context, oq_transformed *t, const int32_t *tokens, oq_real *theta);
/* Their part of dtheta becomes 0. */
void oq_freeze_starved(const oq_transformed *t, const int32_t *tokens, oq_real *dtheta);

#endif
