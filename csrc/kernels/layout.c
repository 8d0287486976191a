#include "kernels/layout.h"

/* Segments of a group of this length, and the units they take. */
static void count_group(oq_layout *l, int64_t length, int64_t times)
{
    const int64_t whole = length / OQ_SEGMENT, rest = length % OQ_SEGMENT;
    l->segments += times * (whole + (rest > 0));
    l->units += times * (whole * (OQ_SEGMENT / l->unit) + oq_segment_units(l, rest));
}

oq_layout oq_layout_of(int64_t in, int64_t group, int bits, int planes)
{
    static const int64_t unit[] = {[2] = 16, [3] = 32, [4] = 8, [8] = 4};
    const int stored = bits > 4 ? 8 : bits;
    oq_layout l = {.in = in,
                   .group = group,
                   .groups = oq_pieces(in, group),
                   .run = planes == 1 ? OQ_RUN : OQ_SEGMENT,
                   .unit = unit[stored],
                   .unit_bytes = stored == 3 ? 192 : 64,
                   .stored_bits = stored};
    count_group(&l, group, in / group);
    count_group(&l, in % group, 1);
    return l;
}
