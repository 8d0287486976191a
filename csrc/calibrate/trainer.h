/* The one training loop: epochs, micro-batches, the optimiser, the guard, and the choice of what is kept.
 * What is trained, a block or a single linear layer, is an objective. */
#ifndef OQ_CALIBRATE_TRAINER_H
#define OQ_CALIBRATE_TRAINER_H

#include "calibrate/guard.h"

typedef struct {
    void *user;
    int64_t items; /* what an epoch passes over: windows of a block, rows of a layer's input */
    /* Bring the maps and weights to theta under the epoch's mask. */
    oq_code (*apply)(oq_context *context, void *user, const oq_real *theta, int64_t epoch);
    /* Mean loss over all items at theta. */
    oq_code (*evaluate)(oq_context *context, void *user, const oq_real *theta, int64_t epoch, double *loss);
    /* Mean loss of some items, in their order, and its gradient, added to dtheta. */
    oq_code (*gradients)(oq_context *context, void *user, const oq_real *theta, int64_t epoch,
                         const int64_t *items, int64_t count, oq_real *dtheta, double *loss);
    /* Told which items come after those of the step about to be taken.  May be NULL. */
    void (*next)(void *user, const int64_t *items, int64_t count);
} oq_objective;

typedef struct {
    int64_t epoch, step; /* step counts through all epochs */
    double loss, min_margin;
} oq_progress;

/* Called after every step; anything but OQ_OK ends the calibration with that code. */
typedef oq_code (*oq_step_hook)(void *user, const oq_progress *progress);
/* Called after every epoch with the learnables as they are then [total]; the same.  May be NULL. */
typedef oq_code (*oq_epoch_hook)(void *user, int64_t epoch, const oq_real *theta);
/* Between the gradients of the step and the optimiser: where ranks would sum theirs.  May be NULL. */
typedef oq_code (*oq_reduce_hook)(void *user, oq_real *dtheta, int64_t count);

typedef struct {
    oq_step_hook on_step;
    oq_epoch_hook on_epoch;
    oq_reduce_hook reduce;
    void *user;
} oq_hooks;

typedef enum { OQ_KEPT_FINAL, OQ_KEPT_BEST, OQ_KEPT_INITIAL, OQ_KEPT_RTN, OQ_KEPT_FEEDBACK } oq_kept;

typedef struct {
    oq_real *theta; /* [list->total], caller's */
    double *trace;  /* [options->epochs] mean training loss, caller's; of the epochs taken alone */
    int32_t *expert_tokens; /* [E] zeroed, caller's: what each expert of the block sees; NULL: it has none */
    int64_t sinks; /* tokens of the windows that are some */
    double loss_rtn, loss_initial, loss_final;
    oq_kept kept; /* whose learnables theta holds: training never returns worse than its start or RTN */
    int64_t epochs, steps; /* taken */
    oq_dominance_report dominance;
    double max_condition, varah_bound;
} oq_calibration_result;

/* From theta = initial; result->theta is initial, rtn, or what training made of initial, whichever loses least. */
oq_code oq_train(oq_context *context, const oq_objective *objective, const oq_guarded *guarded,
                 const oq_hooks *hooks, const oq_real *initial, const oq_real *rtn, oq_calibration_result *result);

#endif
