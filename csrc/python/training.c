#include "python/training.h"

static oq_code after_step(PyObject *on_step, const oq_progress *p)
{
    if (PyErr_CheckSignals() < 0) return OQ_CANCELLED;
    if (!on_step) return OQ_OK;
    PyObject *answer = PyObject_CallFunction(on_step, "LLdd", (long long)p->epoch, (long long)p->step, p->loss,
                                             isinf(p->min_margin) ? Py_NAN : p->min_margin);
    Py_XDECREF(answer);
    return answer ? OQ_OK : OQ_CANCELLED;
}

oq_code oq_python_step(void *user, const oq_progress *progress)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    const oq_code code = after_step(user, progress);
    PyGILState_Release(state);
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

PyObject *oq_training_report(oq_call *call, const oq_calibration_result *r, const char *const *map_names,
                             PyObject *learnables, PyObject *folded)
{
    static const char *const kept[] = {"final", "best", "initial", "rtn"};
    const oq_dominance_report *d = &r->dominance;
    const bool affine = d->any_affine;
    return Py_BuildValue(
        "{s:N,s:O,s:O,s:d,s:d,s:d,s:s,s:L,s:L,s:L,s:N,s:N,s:N,s:N}", "learnables", learnables, "folded", folded,
        "trace", oq_made_array(call, "trace"), "loss_rtn", r->loss_rtn, "loss_initial", r->loss_initial,
        "loss_final", r->loss_final, "kept", kept[r->kept], "steps", (long long)r->steps, "rows_projected",
        (long long)d->rows_projected, "steps_rejected", (long long)d->steps_rejected, "min_margin",
        optional_double(affine, d->min_margin), "max_condition", optional_double(affine, r->max_condition),
        "varah_bound", optional_double(affine, r->varah_bound), "worst_row", worst_row(d, map_names));
}
