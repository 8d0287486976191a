/* What the bindings of all trainings share: the hook after each step, and the report. */
#ifndef OQ_PYTHON_TRAINING_H
#define OQ_PYTHON_TRAINING_H

#include "calibrate/trainer.h"
#include "python/numpy_api.h"

typedef struct {
    PyObject *on_step; /* borrowed; NULL: signals alone */
    PyThreadState *state;
} oq_python_hook;

/* An oq_step_hook whose user is an oq_python_hook.  Takes the GIL back for a moment: Ctrl-C and the caller's
 * callback both end the calibration. */
oq_code oq_python_step(void *user, const oq_progress *progress);

/* The result's dict; takes over learnables, folded and trace (NULL with an exception set: hands it on).
 * map_names are the guarded maps'. */
PyObject *oq_training_report(const oq_calibration_result *r, const char *const *map_names, PyObject *learnables,
                             PyObject *folded, PyObject *trace);

#endif
