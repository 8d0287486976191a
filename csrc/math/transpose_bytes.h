/* Matrices of bytes transposed. */
#ifndef OQ_MATH_TRANSPOSE_BYTES_H
#define OQ_MATH_TRANSPOSE_BYTES_H

#include <stdint.h>

#include "base/context.h"

/* to [width, rows] = x [rows, width] transposed; of every byte those bits are flipped that are set in `flip`. */
void oq_transpose_bytes(const oq_context *context, const uint8_t *x, int64_t rows, int64_t width, uint8_t flip,
                        uint8_t *to);
/* The same on the calling thread for rows that lie ld apart, and ldto; they had better be few enough for the cache. */
void oq_transpose_few_bytes(const uint8_t *x, int64_t ld, int64_t rows, int64_t width, uint8_t flip, uint8_t *to,
                            int64_t ldto);

#endif
