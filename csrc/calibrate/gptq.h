/* Error feedback (GPTQ, arXiv 2210.17323): the weights of a row are rounded one after another, and those still to
 * come make up for the error on the calibration inputs,
 *   w_j <- w_j - (w_i - w^_i) U_ij / U_ii  for j > i,    G + lambda I = (U^T U)^-1,  U upper triangular.
 * Grids are given and stay (static groups), so a column's place in the order leaves no trace in what is stored. */
#ifndef OQ_CALIBRATE_GPTQ_H
#define OQ_CALIBRATE_GPTQ_H

#include "base/context.h"
#include "quant/fake_quantize.h"

typedef struct {
    double damping;   /* lambda over the mean of G's diagonal */
    bool by_activity; /* columns of the largest G_ii first (act-order) */
    bool sequential;  /* each linear of a block on inputs from the rounded ones before it (true-sequential) */
} oq_gptq_options;

/* The factor U of one Gram matrix, shared by the linears that read the same input. */
typedef struct {
    int64_t n;
    int64_t *order; /* [n]: column order[i] is rounded as the i-th */
    oq_real *u;     /* [n, n] in that order */
} oq_feedback;

/* gram [n, n] = X^T X of the inputs; `what` names it in messages. */
oq_code oq_feedback_create(oq_context *context, oq_feedback *feedback, const oq_gptq_options *options,
                           const double *gram, int64_t n, const char *what);

/* codes [rows, width] of w on the given grids, scale and zero_point [rows, groups]. */
oq_code oq_gptq(oq_context *context, const oq_groups *groups, const oq_feedback *feedback, const oq_real *w,
                const oq_real *scale, const uint8_t *zero_point, uint8_t *codes);

#endif
