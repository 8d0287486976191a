/* Operands of products as AMX's tiles (base/amx.h). A word is 2 of bfloat16 or 4 bytes along k.
 *
 * An operand whose rows run along k has its words side by side, any other has the two parts of a word one below the
 * other, and is interleaved. A's tiles have words in a row, B's have them in a column: half of the four cases are
 * transposed.
 *
 * A float is taken as two of bfloat16, x = high + low to 2^-18, and three of their four products are added: a tile of A
 * is packed as high, high, low, one of B as high, low, high. */
#ifndef OQ_MATH_AMX_PACK_H
#define OQ_MATH_AMX_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/amx.h"
#include "base/size.h"

/* Some rows of A or columns of B, and a stretch of k. A row in memory runs along k, or across it. */
typedef struct {
    const uint8_t *from;
    int64_t ld, count, length, size; /* in bytes, rows or columns, values of k, bytes of a value */
    bool across;
} oq_operand;

enum { OQ_FLOAT_TILES = 3 }; /* packed of a tile of floats */

static inline bool oq_is_float(const oq_operand *x) { return x->size == sizeof(float); }

/* Values of k in a tile, and tiles that are packed along k. */
static inline int64_t oq_in_tile(const oq_operand *x) { return OQ_AMX_BYTES / (oq_is_float(x) ? 2 : x->size); }
static inline int64_t oq_tiles_of(const oq_operand *x)
{
    return oq_pieces(x->length, oq_in_tile(x)) * (oq_is_float(x) ? OQ_FLOAT_TILES : 1);
}

/* So many from a row of A or a column of B on. */
oq_operand oq_part_of(oq_operand whole, int64_t place, int64_t count, int64_t first, int64_t length);

/* Rows of A: to [count / 16][tiles]; columns of B, in pairs of 16: to [count / 32][tiles][2]. What is beyond the count
 * and the length is zero, but for a second of a pair that is not there. */
void oq_pack_rows(const oq_operand *a, uint8_t *to);
void oq_pack_columns(const oq_operand *b, uint8_t *to);

#endif
