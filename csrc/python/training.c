#include "python/training.h"

oq_code oq_python_step(void *user, const oq_progress *progress)
{
    oq_python_hook *hook = user;
    oq_code code = OQ_OK;
    PyEval_RestoreThread(hook->state);
    if (PyErr_CheckSignals() < 0) code = OQ_CANCELLED;
    if (code == OQ_OK && hook->on_step) {
        PyObject *answer =
            PyObject_CallFunction(hook->on_step, "LLdd", (long long)progress->epoch, (long long)progress->step,
                                  progress->loss, isinf(progress->min_margin) ? Py_NAN : progress->min_margin);
        if (!answer) code = OQ_CANCELLED;
        Py_XDECREF(answer);
    }
    hook->state = PyEval_SaveThread();
    return code;
}

static PyObject *optional_double(bool given, double value)
{
    return given ? PyFloat_FromDouble(value) : Py_NewRef(Py_None);
}

static PyObject *worst_row(const oq_dominance_report *report, const char *const *map_names)
{
    if (report->worst_map < 0) return PyUnicode_FromString("");
    return PyUnicode_FromFormat("%s map head %lld row %lld", map_names[report->worst_map],
                                (long long)report->worst_head, (long long)report->worst_row);
}

PyObject *oq_training_report(const oq_calibration_result *r, const char *const *map_names, PyObject *learnables,
                             PyObject *folded, PyObject *trace)
{
    static const char *const kept[] = {"final", "best", "initial", "rtn"};
    const oq_dominance_report *d = &r->dominance;
    const bool affine = d->any_affine;
    return Py_BuildValue("{s:N,s:N,s:N,s:d,s:d,s:d,s:s,s:L,s:L,s:L,s:N,s:N,s:N,s:N}", "learnables", learnables,
                         "folded", folded, "trace", trace, "loss_rtn", r->loss_rtn, "loss_initial",
                         r->loss_initial, "loss_final", r->loss_final, "kept", kept[r->kept], "steps",
                         (long long)r->steps, "rows_projected", (long long)d->rows_projected, "steps_rejected",
                         (long long)d->steps_rejected, "min_margin", optional_double(affine, d->min_margin),
                         "max_condition", optional_double(affine, r->max_condition), "varah_bound",
                         optional_double(affine, r->varah_bound), "worst_row", worst_row(d, map_names));
}
