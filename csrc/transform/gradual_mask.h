/* The gradual mask of AffineQuant (eq. 7): a band around the diagonal that opens with the epochs. */
#ifndef OQ_TRANSFORM_GRADUAL_MASK_H
#define OQ_TRANSFORM_GRADUAL_MASK_H

#include "base/real.h"

typedef struct {
    int64_t band;     /* |i - j| <= band is open */
    double stability; /* alpha_s: the mask's value off the diagonal */
} oq_mask;

/* floor((width - 1) e / (E - 1)) in integers; width - 1 for the last epoch and for E = 1. */
int64_t oq_mask_band(int64_t width, int64_t epoch, int64_t epochs);

static inline double oq_mask_value(oq_mask mask, int64_t i, int64_t j)
{
    const int64_t distance = i > j ? i - j : j - i;
    if (distance == 0) return 1;
    return distance <= mask.band ? mask.stability : 0;
}

#endif
