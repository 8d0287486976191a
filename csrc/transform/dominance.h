/* Levy-Desplanques: a matrix with |A_ii| > sum_{j != i} |A_ij| in every row is
 * invertible, and Varah's bound gives ||A^-1||_inf <= 1 / min margin. */
#ifndef OQ_TRANSFORM_DOMINANCE_H
#define OQ_TRANSFORM_DOMINANCE_H

#include "base/real.h"

typedef struct {
    double margin;   /* the smallest |A_ii| - sum of the others */
    double diagonal; /* |A_ii| of that row */
    int64_t row;
} oq_dominance;

/* |A_ii| - sum_{j != i} |A_ij| of one row of A [n, n]. */
double oq_row_margin(const double *row, int64_t i, int64_t n);
oq_dominance oq_weakest_row(const double *a, int64_t n);
/* 1 / margin, infinity when dominance is lost. */
double oq_varah_bound(double margin);
/* Shrink the off-diagonals of every row of A whose margin is below tau |A_ii| to exactly that margin.
 * Returns the number of rows changed. */
int64_t oq_project_dominant(double *a, int64_t n, double tau);

#endif
