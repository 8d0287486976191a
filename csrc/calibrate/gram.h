/* Gram matrices X^T X of the inputs of a block's linears: all that a layer's squared error knows of its data,
 *   || X (W - W^)^T ||^2 = tr((W - W^) G (W - W^)^T). */
#ifndef OQ_CALIBRATE_GRAM_H
#define OQ_CALIBRATE_GRAM_H

#include "block/block.h"
#include "calibrate/options.h"

/* By the site whose map the input's columns would feel: behind the norms, v -> o, up -> down; NULL: not wanted. */
typedef struct {
    double *gram[OQ_SITES]; /* [width, width] */
    int64_t width[OQ_SITES];
} oq_grams;

/* The inputs' widths; room, zeroed, for one site, or with site = -1 for all that linears read. */
oq_code oq_grams_create(oq_context *context, oq_grams *grams, const oq_block_spec *spec, int site);
/* Add one window, as a forward pass saved it: the inputs as the linears read them, quantized where they are. */
oq_code oq_grams_add(oq_context *context, const oq_grams *grams, const oq_saved *saved, int64_t tokens);
/* Windows are added to the lower triangle: the upper one is the same, once all are in. */
void oq_grams_complete(const oq_grams *grams);

#endif
