/* Real matrices as vectors of bytes, one scale a vector, along the side that a product sums over. */
#ifndef OQ_MATH_BYTE_VECTORS_H
#define OQ_MATH_BYTE_VECTORS_H

#include <stdint.h>

#include "base/context.h"
#include "base/real.h"

/* x is about (codes - zero) scale: the largest of a vector becomes 127, the others the nearest multiple. A vector that
 * is not finite has the scale NaN. */
typedef struct {
    uint8_t *codes; /* [vectors, length], int8_t where zero is 0; of columns, */
    bool by_rows;   /* [length, vectors] instead */
    oq_real *scale; /* [vectors] */
    uint8_t zero;   /* 0 or 128 */
} oq_byte_vectors;

/* A matrix [rows, width] of reals, or where those are NULL of bfloat16. */
typedef struct {
    const oq_real *real;
    const uint16_t *half;
    int64_t rows, width;
} oq_byte_source;

oq_code oq_byte_vectors_create(oq_context *context, int64_t vectors, int64_t length, uint8_t zero,
                               oq_byte_vectors *to);
/* The rows of x [rows, width], each element times that of factors [width] first, unless NULL. */
void oq_bytes_of_rows(const oq_context *context, const oq_real *x, const oq_real *factors, int64_t rows, int64_t width,
                      const oq_byte_vectors *to);
/* The columns of x, each element times that of factors [rows] first, unless NULL. */
void oq_bytes_of_columns(const oq_context *context, const oq_byte_source *x, const oq_real *factors,
                         const oq_byte_vectors *to);
/* sums [vectors] of bytes [vectors, length]. */
void oq_sum_bytes(const oq_context *context, const int8_t *bytes, int64_t vectors, int64_t length, int32_t *sums);

#endif
