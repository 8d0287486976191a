/* The affine map of AffineQuant: learnable parameters P [blocks, n, n] under the
 * gradual mask M make A, block by block.
 *   absolute   A = P o M                               (the paper's S o M)
 *   relative   A_ii = P_ii, A_ij = P_ii M_ij P_ij      (A = D (I + E): dominance is sum |M E| < 1 a row) */
#ifndef OQ_TRANSFORM_AFFINE_H
#define OQ_TRANSFORM_AFFINE_H

#include "base/real.h"
#include "transform/gradual_mask.h"

typedef enum { OQ_RELATIVE, OQ_ABSOLUTE } oq_parametrization;

typedef struct {
    oq_parametrization parametrization;
    oq_mask mask;
    int64_t blocks, width; /* n = width */
    int64_t rotary;        /* dims of a block that RoPE rotates, for paired maps */
} oq_affine;

/* a [blocks, n, n] in double. */
void oq_affine_forward(const oq_affine *affine, const oq_real *p, double *a);
/* dp += the gradient through the mask (and the diagonal). */
void oq_affine_backward(const oq_affine *affine, const oq_real *p, const double *da, oq_real *dp);
/* Shrink the off-diagonal parameters of every row whose margin is below tau |A_ii|; the diagonal is first
 * kept away from 0 (|P_ii| >= floor, sign kept).  Returns the number of rows changed. */
int64_t oq_affine_project(const oq_affine *affine, oq_real *p, double tau);
void oq_affine_floor_diagonal(const oq_affine *affine, oq_real *p, double floor_value);

#endif
