#include "math/blocks.h"

#include "base/size.h"

/* A length in as few pieces as it takes, all alike and whole units. */
static int64_t piece(int64_t length, int64_t most, int64_t unit)
{
    const int64_t each = oq_pieces(length, oq_pieces(length, most));
    return oq_pieces(each, unit) * unit;
}

static void run_block(const oq_blocks *b, const oq_block_place *at, void *user)
{
    b->pack_a(user, at);
    for (int64_t j = 0; j < at->columns; j += b->lanes)
        for (int64_t i = 0; i < at->rows; i += b->high) b->tile(user, at, i, j);
}

void oq_in_blocks(const oq_blocks *b, void *user)
{
    oq_block_place at = {0};
    if (b->m <= 0 || b->n <= 0 || b->k <= 0) return;
    const int64_t tall = piece(b->m, b->tall, b->high), wide = piece(b->n, b->wide, b->lanes);
    const int64_t deep = piece(b->k, b->deep, b->unit);
    for (at.column = 0; at.column < b->n; at.column += wide) {
        at.columns = oq_least(wide, b->n - at.column);
        for (at.k0 = 0; at.k0 < b->k; at.k0 += deep) {
            at.depth = oq_least(deep, b->k - at.k0);
            b->pack_b(user, &at);
            for (at.row = 0; at.row < b->m; at.row += tall) {
                at.rows = oq_least(tall, b->m - at.row);
                run_block(b, &at, user);
            }
        }
    }
}
