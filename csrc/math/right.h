/* The right operand B [k, n] of a product of bytes, and how it lies. */
#ifndef OQ_MATH_RIGHT_H
#define OQ_MATH_RIGHT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/context.h"

typedef enum {
    OQ_BY_COLUMNS, /* [n, k]: one column behind another */
    OQ_BY_ROWS,    /* [k, n] */
    OQ_IN_SLIVERS  /* [n / 64][k / 4][64][4], zeros where B has ended: as VNNI reads it */
} oq_right_layout;

typedef struct {
    oq_right_layout layout;
    int64_t n, k;
    const int8_t *bytes;
    uint8_t flip;       /* by rows alone: the bits that are turned round before anything is multiplied */
    int most;           /* which no byte exceeds in size */
    const int32_t *sum; /* [n] sums of columns; NULL by rows, whose reader finds them */
} oq_right;

/* B of x [k, n], bytes by rows with bits to be flipped, in a layout that products take here; in the arena where that
 * is another one. Often: several products take it. */
oq_code oq_right_of_rows(oq_context *context, const uint8_t *x, int64_t k, int64_t n, uint8_t flip, int most,
                         bool often, oq_right *b);
/* The same of x [n, k] by columns. */
oq_code oq_right_of_columns(oq_context *context, const uint8_t *x, int64_t k, int64_t n, int most, bool often,
                            oq_right *b);

/* The sliver of B, by columns or by rows, from a column on, and its sums [64]. */
void oq_right_sliver(const oq_right *b, int64_t column, int8_t *to, int32_t *sums);

#endif
