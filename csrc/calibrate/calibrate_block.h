/* Block-wise quantization error minimisation: train the learnables of one block so that the quantized block
 * on X_q gives what the full-precision block gives on X_fp. */
#ifndef OQ_CALIBRATE_CALIBRATE_BLOCK_H
#define OQ_CALIBRATE_CALIBRATE_BLOCK_H

#include "calibrate/followers.h"
#include "calibrate/trainer.h"
#include "calibrate/transformed.h"

/* Given block(x_fp) of a window [T, H]; anything but OQ_OK ends the calibration with that code. */
typedef oq_code (*oq_target_hook)(void *user, int64_t window, const oq_real *y);

typedef struct {
    int64_t samples, tokens;   /* N windows of T */
    const oq_real *x_fp, *x_q; /* [N, T, H] */
    const oq_real *target;     /* [N, T, H] block(x_fp); where there is an on_target, read when that was given all */
    const oq_real *aug_target; /* [N, T, H] block(x_q), or NULL */
    const oq_followers *followers; /* NULL: the loss is that of this block alone */
    const oq_real *goal;           /* [N, T, H] what the last of them makes of target; NULL without any */
    bool mapped;               /* all of these are mappings of files, whose pages can come and go */
    oq_rope rope;
    oq_target_hook on_target; /* puts what the start computes anyway where `target` shows it; NULL: it is there */
    void *user;
} oq_calibration_data;

oq_code oq_calibrate_block(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                           const oq_options *options, const oq_calibration_data *data, const oq_hooks *hooks,
                           oq_calibration_result *result);

/* Loss of one set of learnables over all windows, and its gradient [total] unless dtheta is NULL: the very
 * function the training descends, for tests and for those with their own optimiser. */
oq_code oq_block_loss(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                      const oq_options *options, const oq_calibration_data *data, const oq_real *theta,
                      int64_t epoch, double *loss, oq_real *dtheta);

#endif
