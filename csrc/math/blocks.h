/* The loops of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008): a stretch of op(B) is
 * copied once, a block of op(A) copied once lies in the second-level cache, a sliver of op(B) in the first, and a tile
 * of C in registers. */
#ifndef OQ_MATH_BLOCKS_H
#define OQ_MATH_BLOCKS_H

#include <stdint.h>

/* Where the loops are: rows and columns of C, and a stretch of k. */
typedef struct {
    int64_t row, rows, column, columns, k0, depth;
} oq_block_place;

typedef struct {
    int64_t m, n, k;
    int64_t tall, wide, deep; /* the most rows, columns and k at a time */
    int64_t unit;             /* of k: stretches are multiples of it, the last excepted */
    int64_t high, lanes;      /* rows and columns of a tile, of which tall and wide are multiples */
    void (*pack_a)(void *user, const oq_block_place *at); /* at->rows, at->depth */
    void (*pack_b)(void *user, const oq_block_place *at); /* at->columns, at->depth */
    /* The tile at row i and column j of the block; C may end within it. */
    void (*tile)(void *user, const oq_block_place *at, int64_t i, int64_t j);
} oq_blocks;

/* How k is cut depends on k alone. */
void oq_in_blocks(const oq_blocks *blocks, void *user);

#endif
