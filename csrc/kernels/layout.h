/* How weights lie in memory, one layout for every kernel.
 *
 * Outputs are cut into tiles of 16, four tiles make a panel (the last panel may have fewer).  Inputs are cut into
 * groups, a group into segments of at most 128 inputs, a segment into units, the last padded with code 0.  A unit
 * of a tile is one load of 64 bytes (three for 3 bits): lane l holds output l, and each of its 4 bytes an input.
 *
 *   8 bits   4 inputs   byte b: input b
 *   4 bits   8 inputs   byte b: inputs b, 4 + b, low bits first
 *   2 bits  16 inputs   byte b: inputs b, 4 + b, 8 + b, 12 + b
 *   3 bits  32 inputs   two units of 2 bits (bits 0 and 1), then 64 bytes of bit 2: byte b: inputs b, 4 + b, ...
 *
 *   codes  [panel][unit][tile of the panel][unit_bytes]
 *   scales [panel][group][16 tiles]    zeros the same    sums [panel][segment][16 tiles]
 *
 * So whatever the bits, shifting and masking gives 4 consecutive inputs of 16 outputs, which is what vpdpbusd
 * multiplies with 4 activations sent to all lanes. */
#ifndef OQ_KERNELS_LAYOUT_H
#define OQ_KERNELS_LAYOUT_H

#include "base/size.h"
#include "kernels/linear.h"

enum {
    OQ_TILE = 16,       /* outputs of a tile: the lanes of a 512-bit register */
    OQ_PANEL_TILES = 4, /* tiles of a panel */
    OQ_PANEL = 64,      /* outputs of a panel */
    OQ_SEGMENT = 128,   /* 128 * 255 fits 16 bits, which the zero points' corrections are computed in */
    OQ_RUN = 32768,     /* 255 * 255 * 32768 fits 32 bits: a longer group is added up in several runs */
    OQ_MOST_UNIT = 32   /* inputs */
};

/* `planes` of activations: a segment of fixed point is a run of its own, as it has a step of its own. */
oq_layout oq_layout_of(int64_t in, int64_t group, int bits, int planes);

/* Inputs of group g. */
static inline int64_t oq_group_length(const oq_layout *l, int64_t g)
{
    return oq_least(l->group, l->in - g * l->group);
}
static inline int64_t oq_segment_units(const oq_layout *l, int64_t length) { return oq_pieces(length, l->unit); }

#endif
