/* 64 columns of B as AVX-512 multiplies them: words of 32 bits, four bytes of k or two bfloat16, those of 64 columns
 * side by side, zeros where B has ended. */
#ifndef OQ_MATH_SLIVER_H
#define OQ_MATH_SLIVER_H

#include "math/right.h"

enum { OQ_SLIVER = 64 };

/* A part of B that lies with its rows or its columns one behind another, `ld` bytes apart. */
typedef struct {
    const uint8_t *x;
    int64_t ld;
    int64_t columns; /* that are left: 64, or fewer */
    int64_t k;
} oq_sliver_source;

/* Bytes of a sliver so many bytes of k deep. */
static inline int64_t oq_sliver_bytes(int64_t deep) { return (deep + 3) / 4 * 4 * OQ_SLIVER; }

/* From columns, whose elements have `size` bytes. */
void oq_sliver_of_columns(const oq_sliver_source *b, int size, int8_t *to);
/* From rows of bytes, the bits of `flip` turned, and of bfloat16. */
void oq_sliver_of_byte_rows(const oq_sliver_source *b, uint8_t flip, int8_t *to);
void oq_sliver_of_half_rows(const oq_sliver_source *b, int8_t *to);

/* Of bytes with a sign, as they lie: the columns from one on, and their sums [64]. */
void oq_sliver_of(const oq_right *b, int64_t column, int8_t *to, int32_t *sums);
/* sums [64] of the columns of a sliver of bytes with a sign, so many deep. */
void oq_sliver_sums(const int8_t *packed, int64_t deep, int32_t *sums);

#endif
