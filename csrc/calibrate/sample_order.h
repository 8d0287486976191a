/* The order of windows in an epoch, drawn from (seed, block, epoch) alone: a resumed run repeats it. */
#ifndef OQ_CALIBRATE_SAMPLE_ORDER_H
#define OQ_CALIBRATE_SAMPLE_ORDER_H

#include <stdbool.h>
#include <stdint.h>

void oq_sample_order(uint64_t seed, int64_t block, int64_t epoch, bool shuffle, int64_t *order, int64_t count);

#endif
