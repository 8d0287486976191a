/* What the training loop and the evaluation of a block share: one window forward, its loss, and back. */
#ifndef OQ_CALIBRATE_SESSION_H
#define OQ_CALIBRATE_SESSION_H

#include "calibrate/calibrate_block.h"

typedef struct {
    const oq_block_spec *spec;
    const oq_options *options;
    const oq_calibration_data *data;
    const oq_block_weights *original;
    oq_learnables list;
    oq_transformed transformed;
    oq_block_run run;
    oq_saved saved;
    int64_t judges;        /* windows that tell a loss, evenly among all */
    double *token_weights; /* [N, T] */
    oq_ahead ahead;        /* the blocks behind, where the loss looks through them */
    double *goal_weights;  /* [N, T] */
    oq_real *y, *dy;       /* [T, H] */
    bool *sink;            /* [T] of a window */
    int64_t sinks;         /* of all windows */
    int32_t *expert_tokens; /* [E] of the full-precision stream; NULL: no experts */
} oq_session;

oq_code oq_session_create(oq_context *context, oq_session *session, const oq_block_spec *spec,
                          const oq_block_weights *weights, const oq_options *options,
                          const oq_calibration_data *data);
/* Check every window of every stream, and weigh its tokens: before the first loss. */
oq_code oq_session_take(oq_context *context, oq_session *session);
/* Loss of one window under the transformed weights; its gradients are gathered, and those taken in passing added to
 * dtheta, unless that is NULL. */
oq_code oq_session_window(oq_context *context, oq_session *session, int64_t window, double share, oq_real *dtheta,
                          double *loss);
/* The window is needed soon. */
void oq_session_want(const oq_session *session, int64_t window);
/* The window is not needed for a while. */
void oq_session_drop(const oq_session *session, int64_t window);
/* How many of the windows tell one iterate from another: as many as make 8,192 tokens, at least 8 and at most 32.
 * More would take as long as a short training itself. */
int64_t oq_judges(int64_t samples, int64_t tokens);
/* The i-th of them, evenly among all. */
int64_t oq_judge(int64_t samples, int64_t judges, int64_t i);
/* Let so many windows tell the loss. */
void oq_session_judge_few(oq_session *session);
/* Mean loss over the windows that tell it, under the transformed weights as they are. */
oq_code oq_session_loss(oq_context *context, oq_session *session, double *loss);
/* The same at theta. */
oq_code oq_session_evaluate(oq_context *context, oq_session *session, const oq_real *theta, int64_t epoch,
                            double *loss);

#endif
