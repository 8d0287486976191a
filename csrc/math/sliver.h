/* 64 columns of B as VNNI reads them: four of k in a word, the words of 64 columns side by side, zeros where B has
 * ended. */
#ifndef OQ_MATH_SLIVER_H
#define OQ_MATH_SLIVER_H

#include "math/right.h"

enum { OQ_SLIVER = 64, OQ_QUAD = 4 * OQ_SLIVER /* bytes of four of k */ };

static inline int64_t oq_quads(const oq_right *b) { return (b->k + 3) / 4; }
static inline int64_t oq_slivers(const oq_right *b) { return (b->n + OQ_SLIVER - 1) / OQ_SLIVER; }

/* The columns of B, by columns or by rows, from `column` on: to [oq_quads, 64][4], and their sums [64]. */
void oq_pack_sliver(const oq_right *b, int64_t column, int8_t *to, int32_t *sums);

#endif
