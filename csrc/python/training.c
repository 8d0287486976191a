#include "python/training.h"

#include <string.h>

/* Takes over the callback's answer. */
static oq_code go_on_unless_raised(PyObject *answer)
{
    Py_XDECREF(answer);
    return answer ? OQ_OK : OQ_CANCELLED;
}

static oq_code after_step(void *user, const oq_progress *p)
{
    const oq_listener *listener = user;
    const PyGILState_STATE state = PyGILState_Ensure();
    const double margin = isinf(p->min_margin) ? Py_NAN : p->min_margin;
    oq_code code = PyErr_CheckSignals() < 0 ? OQ_CANCELLED : OQ_OK;
    if (code == OQ_OK && listener->on_step)
        code = go_on_unless_raised(PyObject_CallFunction(listener->on_step, "LLdd", (long long)p->epoch,
                                                         (long long)p->step, p->loss, margin));
    PyGILState_Release(state);
    return code;
}

static oq_code after_epoch(void *user, int64_t epoch, const oq_real *theta)
{
    const oq_listener *listener = user;
    const PyGILState_STATE state = PyGILState_Ensure();
    oq_call brief = {.keep = PyList_New(0), .axis_count = -1}; /* the arrays are the callback's alone */
    PyObject *learnables = brief.keep ? oq_learnables_to_dict(&brief, listener->list, theta) : NULL;
    Py_XDECREF(brief.keep);
    const oq_code code = go_on_unless_raised(
        learnables ? PyObject_CallFunction(listener->on_epoch, "LN", (long long)epoch, learnables) : NULL);
    PyGILState_Release(state);
    return code;
}

static oq_code after_target(void *user, int64_t window, const oq_real *y)
{
    const oq_listener *listener = user;
    const PyGILState_STATE state = PyGILState_Ensure();
    oq_call brief = {.keep = PyList_New(0), .axis_count = -1};
    brief.size['T'] = listener->tokens;
    brief.size['H'] = listener->hidden;
    PyArrayObject *array = brief.keep ? oq_make_array(&brief, OQ_REALS, "TH") : NULL;
    if (array) memcpy(oq_data(array), y, sizeof *y * (size_t)(listener->tokens * listener->hidden));
    oq_code code = array && PyErr_CheckSignals() == 0 ? OQ_OK : OQ_CANCELLED;
    if (code == OQ_OK)
        code = go_on_unless_raised(PyObject_CallFunction(listener->on_target, "LO", (long long)window, array));
    Py_XDECREF(brief.keep);
    PyGILState_Release(state);
    return code;
}

oq_target_hook oq_python_target_hook(const oq_listener *listener)
{
    return listener->on_target ? after_target : NULL;
}

oq_hooks oq_python_hooks(oq_listener *listener)
{
    return (oq_hooks){
        .on_step = after_step, .on_epoch = listener->on_epoch ? after_epoch : NULL, .user = listener};
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
    static const char *const kept[] = {"final", "best", "initial", "rtn", "gptq"};
    const oq_dominance_report *d = &r->dominance;
    const bool affine = d->any_affine;
    PyObject *trace = PySequence_GetSlice((PyObject *)oq_made_array(call, "trace"), 0, (Py_ssize_t)r->epochs);
    return Py_BuildValue(
        "{s:N,s:O,s:N,s:d,s:d,s:d,s:s,s:L,s:L,s:L,s:N,s:N,s:N,s:N}", "learnables", learnables, "folded", folded,
        "trace", trace, "loss_rtn", r->loss_rtn, "loss_initial", r->loss_initial, "loss_final", r->loss_final,
        "kept", kept[r->kept], "steps", (long long)r->steps, "rows_projected", (long long)d->rows_projected,
        "steps_rejected", (long long)d->steps_rejected, "min_margin", optional_double(affine, d->min_margin),
        "max_condition", optional_double(affine, r->max_condition), "varah_bound",
        optional_double(affine, r->varah_bound), "worst_row", worst_row(d, map_names));
}
