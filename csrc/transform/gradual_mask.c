#include "transform/gradual_mask.h"

int64_t oq_mask_band(int64_t width, int64_t epoch, int64_t epochs)
{
    if (epochs <= 1 || epoch >= epochs - 1) return width - 1;
    /* width and epochs are far below 2^31: the product fits. */
    return (width - 1) * epoch / (epochs - 1);
}
