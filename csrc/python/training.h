/* What the bindings of all trainings share: the hook after each step, and the report. */
#ifndef OQ_PYTHON_TRAINING_H
#define OQ_PYTHON_TRAINING_H

#include "calibrate/calibrate_block.h"
#include "python/learned.h"

/* Who is told; each callback may be NULL. */
typedef struct {
    PyObject *on_step, *on_epoch, *on_target;
    const oq_learnables *list;
    int64_t tokens, hidden; /* of what on_target is given */
} oq_listener;

/* Hooks that take the GIL for a moment: Ctrl-C and the callbacks' exceptions end the calibration. */
oq_hooks oq_python_hooks(oq_listener *listener);

/* The hook of oq_calibration_data, with the same listener; NULL where nobody listens. */
oq_target_hook oq_python_target_hook(const oq_listener *listener);

/* The result's dict, with the call's array `trace`; takes over the reference to `learnables` (NULL with an
 * exception set: hands it on).  map_names are the guarded maps'. */
PyObject *oq_training_report(oq_call *call, const oq_calibration_result *r, const char *const *map_names,
                             PyObject *learnables, PyObject *folded);

#endif
