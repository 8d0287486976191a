/* Block-wise quantization error minimisation: train the learnables of one block so that the quantized block
 * on X_q gives what the full-precision block gives on X_fp. */
#ifndef OQ_CALIBRATE_CALIBRATE_BLOCK_H
#define OQ_CALIBRATE_CALIBRATE_BLOCK_H

#include "calibrate/guard.h"

typedef struct {
    int64_t samples, tokens;    /* N windows of T */
    const oq_real *x_fp, *x_q;  /* [N, T, H] */
    const oq_real *target;      /* [N, T, H] block(x_fp) */
    const oq_real *aug_target;  /* [N, T, H] block(x_q), or NULL */
    oq_rope rope;
} oq_calibration_data;

typedef struct {
    int64_t epoch, step; /* step counts through all epochs */
    double loss, min_margin;
} oq_progress;

/* Called after every step; anything but OQ_OK ends the calibration with that code. */
typedef oq_code (*oq_step_hook)(void *user, const oq_progress *progress);
/* Between the gradients of the step and the optimiser: where ranks would sum theirs.  May be NULL. */
typedef oq_code (*oq_reduce_hook)(void *user, oq_real *dtheta, int64_t count);

typedef struct {
    oq_step_hook on_step;
    oq_reduce_hook reduce;
    void *user;
} oq_hooks;

typedef enum { OQ_KEPT_FINAL, OQ_KEPT_BEST, OQ_KEPT_INITIAL, OQ_KEPT_RTN } oq_kept;

typedef struct {
    oq_real *theta; /* [list->total], caller's */
    double *trace;  /* [epochs] mean training loss, caller's */
    double loss_rtn, loss_initial, loss_final;
    oq_kept kept;   /* whose learnables theta holds: training never returns worse than its start or RTN */
    int64_t steps;
    oq_dominance_report dominance;
    double max_condition, varah_bound;
} oq_calibration_result;

oq_code oq_calibrate_block(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                           const oq_options *options, const oq_calibration_data *data, const oq_hooks *hooks,
                           oq_calibration_result *result);

/* Loss of one set of learnables over all windows, and its gradient [total] unless dtheta is NULL: the very
 * function the training descends, for tests and for those with their own optimiser. */
oq_code oq_block_loss(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                      const oq_options *options, const oq_calibration_data *data, const oq_real *theta,
                      int64_t epoch, double *loss, oq_real *dtheta);

#endif
