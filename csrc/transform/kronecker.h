/* A Kronecker product of two maps on rows of n = a b numbers, each row seen as a matrix X [a, b]:
 *   y = x (L (x) R)      Y = L^T X R         what an input takes, with the inverses of the factors
 *   y = x (L (x) R)^T    Y = L X R^T         what its weight takes, with the factors themselves
 * n (a + b) multiply-adds a row instead of n^2 (FlatQuant, Sun et al. 2024, arXiv 2410.09426). The inverse is the
 * product of the factors' inverses, and its norm at most the product of their bounds: strict dominance of both
 * factors certifies the whole. */
#ifndef OQ_TRANSFORM_KRONECKER_H
#define OQ_TRANSFORM_KRONECKER_H

#include "base/context.h"
#include "base/real.h"

typedef struct {
    int64_t a, b;
    const oq_real *left, *right; /* L [a, a], R [b, b] */
    bool transposed;
} oq_kronecker;

/* The divisor of n nearest to its root from below: n = a b with a <= b. */
int64_t oq_kronecker_left(int64_t n);

/* y [rows, n]; a row's result does not depend on the others. y != x. */
oq_code oq_kronecker_forward(oq_context *context, const oq_kronecker *k, const oq_real *x, oq_real *y,
                             int64_t rows);
/* dleft [a, a], dright [b, b] += ... unless NULL; dx [rows, n] is overwritten unless NULL, dx != dy. */
oq_code oq_kronecker_backward(oq_context *context, const oq_kronecker *k, const oq_real *x, const oq_real *dy,
                              oq_real *dleft, oq_real *dright, oq_real *dx, int64_t rows);

#endif
