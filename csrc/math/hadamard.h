/* A fixed orthogonal matrix of any size n = m 2^k, m odd: Sylvester's Hadamard matrix of the power of two and
 * Hartley's of the odd part,
 *   T_n = C_m (x) H_2^k / sqrt(n),   C_ij = cos(2 pi i j / m) + sin(2 pi i j / m).
 * No entry is above sqrt(2 / n), so it spreads one large value over all.  It is symmetric and its own inverse:
 * forward, backward and undoing are one function. */
#ifndef OQ_MATH_HADAMARD_H
#define OQ_MATH_HADAMARD_H

#include "base/context.h"
#include "base/real.h"

/* x [rows, n, stride] times T_n along the middle axis, in place; k n additions and, where m > 1, m n
 * multiply-adds a row and position. */
oq_code oq_hadamard(oq_context *context, oq_real *x, int64_t rows, int64_t n, int64_t stride);

#endif
