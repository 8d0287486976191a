/* The right operand B [k, n] of a product of bytes, and how it lies. */
#ifndef OQ_MATH_RIGHT_H
#define OQ_MATH_RIGHT_H

#include <stdint.h>

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

#endif
