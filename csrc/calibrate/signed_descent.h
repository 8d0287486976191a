/* Signed gradient descent for the offsets of learned rounding (SignRound, arXiv 2309.05516, eq. 4): what counts is
 * which way a weight should round, and the sign tells it without a moment to keep for every weight. */
#ifndef OQ_CALIBRATE_SIGNED_DESCENT_H
#define OQ_CALIBRATE_SIGNED_DESCENT_H

#include "calibrate/learnables.h"

/* V <- clamp(V - rate sign(dV), -0.5, 0.5) in every entry of offsets. */
void oq_signed_step(const oq_learnables *list, double rate, const oq_real *dtheta, oq_real *theta);

#endif
