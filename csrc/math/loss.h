/* Block reconstruction loss: each token's squared error, weighted.
 *   L = sum_t w_t mean_j (y_tj - target_tj)^2 */
#ifndef OQ_MATH_LOSS_H
#define OQ_MATH_LOSS_H

#include "base/context.h"
#include "base/real.h"

typedef enum {
    OQ_LOSS_MSE,  /* w_t = 1 / T: the papers' loss */
    OQ_LOSS_TOKEN, /* w_t = 1 / (T mean_j (target_tj - x_tj)^2): the error relative to the block's update, so
                    * that one massive token does not own the loss */
    OQ_LOSS_RELATIVE /* w_t = 1 / (T mean_j target_tj^2): relative to the token itself, as the next norm sees it */
} oq_loss_kind;

/* weights [T] from the full-precision target and the block's input, both [T, H]. */
void oq_loss_weights(oq_loss_kind kind, const oq_real *target, const oq_real *x, double *weights, int64_t tokens,
                     int64_t hidden);
/* Mean square of a token's state x [H]. */
double oq_token_energy(const oq_real *x, int64_t hidden);
/* Returns L; dy [T, H] += dL/dy unless dy is NULL. */
double oq_loss(const oq_real *y, const oq_real *target, const double *weights, oq_real *dy, int64_t tokens,
               int64_t hidden);

#endif
