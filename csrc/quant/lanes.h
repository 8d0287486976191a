/* Partial sums that a loop keeps apart: their number is fixed, so results do not depend on the ISA. */
#ifndef OQ_QUANT_LANES_H
#define OQ_QUANT_LANES_H

#include "base/real.h"

enum { OQ_LANES = 16 };

OQ_INLINE double oq_sum_of_lanes(const oq_real *sums)
{
    double total = 0;
    for (int j = 0; j < OQ_LANES; j++) total += (double)sums[j];
    return total;
}

#endif
