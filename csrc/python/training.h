/* What the bindings of all trainings share: the hook after each step, and the report. */
#ifndef OQ_PYTHON_TRAINING_H
#define OQ_PYTHON_TRAINING_H

#include "calibrate/trainer.h"
#include "python/learned.h"

/* An oq_step_hook whose user is the caller's callback, or NULL.  Takes the GIL for a moment: Ctrl-C and the
 * callback's exceptions both end the calibration. */
oq_code oq_python_step(void *user, const oq_progress *progress);

/* The result's dict, with the call's array `trace`; takes over the reference to `learnables` (NULL with an
 * exception set: hands it on).  map_names are the guarded maps'. */
PyObject *oq_training_report(oq_call *call, const oq_calibration_result *r, const char *const *map_names,
                             PyObject *learnables, PyObject *folded);

#endif
