/* Calibrating and folding one block. */
#include "python/block_args.h"
#include "python/call.h"
#include "python/learned.h"
#include "python/topics.h"
#include "python/training.h"
#include "quant/ste_tape.h"

/* ---- arguments ----------------------------------------------------------- */

typedef struct {
    PyObject *spec, *weights, *x_fp, *x_q, *targets, *aug_targets, *cos, *sin, *options;
} call_objects;

static int parse_call(const call_objects *o, oq_block_args *args)
{
    oq_calibration_data *data = &args->data;
    if (oq_parse_spec(o->spec, &args->spec) < 0 || oq_parse_options(o->options, &args->options) < 0 ||
        oq_parse_weights(o->weights, args) < 0 || !(data->x_fp = oq_parse_stream(o->x_fp, "x_fp", args)) ||
        !(data->x_q = oq_parse_stream(o->x_q, "x_q", args)) ||
        !(data->target = oq_parse_stream(o->targets, "targets", args)))
        return -1;
    if (o->aug_targets != Py_None && !(data->aug_target = oq_parse_stream(o->aug_targets, "aug_targets", args)))
        return -1;
    return oq_parse_rope(o->cos, o->sin, args);
}

/* ---- calibrate_block ------------------------------------------------------ */

static oq_code calibrate_and_fold(oq_context *context, const oq_block_args *args, const oq_hooks *hooks,
                                  oq_calibration_result *result, const oq_folded *folded)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    OQ_TRY(oq_calibrate_block(context, &args->spec, &args->weights, &args->options, &args->data, hooks, result));
    oq_arena_rewind(context->arena, mark);
    return oq_fold_block(context, &args->spec, &args->weights, &args->options, result->theta, folded);
}

/* Runs the core without the GIL; NULL with an exception, or the result's dict. */
static PyObject *run_calibration(const oq_block_args *args, PyObject *on_step, int threads)
{
    oq_learnables list;
    oq_folded folded;
    oq_context context;
    oq_python_hook hook = {on_step == Py_None ? NULL : on_step, NULL};
    const oq_hooks hooks = {.on_step = oq_python_step, .user = &hook};
    PyObject *learnables = NULL, *result = NULL;
    oq_learnables_list(&args->spec, &args->options, &args->weights, &list);
    PyArrayObject *trace = oq_array_new(NPY_DOUBLE, 1, (npy_intp[]){args->options.epochs});
    PyArrayObject *theta = oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){list.total});
    PyObject *tensors = oq_folded_arrays(args, &folded);
    if (trace && theta && tensors && oq_call_begin(&context, threads) == 0) {
        oq_calibration_result r = {.theta = oq_array_reals(theta), .trace = oq_array_doubles(trace)};
        hook.state = PyEval_SaveThread();
        const oq_code code = calibrate_and_fold(&context, args, &hooks, &r, &folded);
        PyEval_RestoreThread(hook.state);
        if (code == OQ_OK && (learnables = oq_learnables_to_dict(&list, r.theta)))
            result = oq_training_report(&r, oq_site_names, learnables, Py_NewRef(tensors),
                                        Py_NewRef((PyObject *)trace));
        if (code == OQ_CANCELLED && PyErr_Occurred()) /* the callback's own exception goes on */
            oq_arena_destroy(context.arena);
        else
            result = oq_call_end(&context, code, result);
    }
    Py_XDECREF(tensors);
    oq_array_release(theta);
    oq_array_release(trace);
    return result;
}

static PyObject *calibrate_block(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"spec", "weights", "x_fp",    "x_q",     "targets", "aug_targets",
                            "cos",  "sin",     "options", "on_step", "threads", NULL};
    call_objects o;
    oq_block_args args;
    PyObject *on_step = Py_None, *result = NULL;
    int threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOOOOOOOO|$Oi:calibrate_block", names, &o.spec,
                                     &o.weights, &o.x_fp, &o.x_q, &o.targets, &o.aug_targets, &o.cos, &o.sin,
                                     &o.options, &on_step, &threads) ||
        oq_block_args_begin(&args) < 0)
        return NULL;
    if (parse_call(&o, &args) == 0) result = run_calibration(&args, on_step, threads);
    oq_block_args_end(&args);
    return result;
}

/* ---- fold_block ----------------------------------------------------------- */

static PyObject *run_fold(const oq_block_args *args, PyObject *learnables, int threads)
{
    oq_learnables list;
    oq_folded folded;
    oq_context context;
    oq_code code;
    PyObject *result = NULL;
    oq_learnables_list(&args->spec, &args->options, &args->weights, &list);
    PyArrayObject *theta = oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){list.total});
    if (theta && oq_learnables_from_dict(&list, learnables, oq_array_reals(theta)) == 0 &&
        (result = oq_folded_arrays(args, &folded))) {
        if (oq_call_begin(&context, threads) < 0) {
            Py_CLEAR(result);
        } else {
            Py_BEGIN_ALLOW_THREADS code = oq_fold_block(&context, &args->spec, &args->weights, &args->options,
                                                        oq_array_reals(theta), &folded);
            Py_END_ALLOW_THREADS result = oq_call_end(&context, code, result);
        }
    }
    oq_array_release(theta);
    return result;
}

static PyObject *fold_block(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"spec", "weights", "options", "learnables", "threads", NULL};
    PyObject *spec, *weights, *options, *learnables, *result = NULL;
    oq_block_args args;
    int threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOOO|$i:fold_block", names, &spec, &weights, &options,
                                     &learnables, &threads) ||
        oq_block_args_begin(&args) < 0)
        return NULL;
    if (oq_parse_spec(spec, &args.spec) == 0 && oq_parse_options(options, &args.options) == 0 &&
        oq_parse_weights(weights, &args) == 0)
        result = run_fold(&args, learnables, threads);
    oq_block_args_end(&args);
    return result;
}

/* ---- block_loss ----------------------------------------------------------- */

static PyObject *run_loss(const oq_block_args *args, PyObject *learnables, int64_t epoch, int threads)
{
    oq_learnables list;
    oq_context context;
    oq_code code;
    double loss = 0;
    PyObject *result = NULL;
    oq_learnables_list(&args->spec, &args->options, &args->weights, &list);
    PyArrayObject *theta = oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){list.total});
    PyArrayObject *dtheta = oq_array_new(OQ_NPY_REAL, 1, (npy_intp[]){list.total});
    if (theta && dtheta && oq_learnables_from_dict(&list, learnables, oq_array_reals(theta)) == 0 &&
        oq_call_begin(&context, threads) == 0) {
        Py_BEGIN_ALLOW_THREADS code =
            oq_block_loss(&context, &args->spec, &args->weights, &args->options, &args->data,
                          oq_array_reals(theta), epoch, &loss, oq_array_reals(dtheta));
        Py_END_ALLOW_THREADS PyObject *gradients =
            code == OQ_OK ? oq_learnables_to_dict(&list, oq_array_reals(dtheta)) : NULL;
        if (gradients) result = Py_BuildValue("dN", loss, gradients);
        result = oq_call_end(&context, code, result);
    }
    oq_array_release(theta);
    oq_array_release(dtheta);
    return result;
}

static PyObject *block_loss(PyObject *module, PyObject *positional, PyObject *keywords)
{
    static char *names[] = {"spec", "weights", "x_fp",       "x_q",   "targets", "aug_targets", "cos",
                            "sin",  "options", "learnables", "epoch", "threads", NULL};
    call_objects o;
    oq_block_args args;
    PyObject *learnables, *result = NULL;
    long long epoch = 0;
    int threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(positional, keywords, "OOOOOOOOOO|$Li:block_loss", names, &o.spec, &o.weights,
                                     &o.x_fp, &o.x_q, &o.targets, &o.aug_targets, &o.cos, &o.sin, &o.options,
                                     &learnables, &epoch, &threads) ||
        oq_block_args_begin(&args) < 0)
        return NULL;
    if (parse_call(&o, &args) == 0) result = run_loss(&args, learnables, epoch, threads);
    oq_block_args_end(&args);
    return result;
}

#ifdef OQ_DOUBLE
static PyObject *tape(PyObject *module, PyObject *args)
{
    int mode;
    (void)module;
    if (!PyArg_ParseTuple(args, "i:_tape", &mode)) return NULL;
    if (mode < OQ_TAPE_OFF || mode > OQ_TAPE_REPLAY) {
        PyErr_Format(PyExc_ValueError, "mode must be 0 (off), 1 (record) or 2 (replay), got %d", mode);
        return NULL;
    }
    oq_tape_start((oq_tape_mode)mode);
    Py_RETURN_NONE;
}
#endif

PyMethodDef oq_calibrate_methods[] = {
    {"calibrate_block", (PyCFunction)(void (*)(void))calibrate_block, METH_VARARGS | METH_KEYWORDS,
     "Train, check and fold one block."},
    {"fold_block", (PyCFunction)(void (*)(void))fold_block, METH_VARARGS | METH_KEYWORDS,
     "Fold given learnables into one block."},
    {"block_loss", (PyCFunction)(void (*)(void))block_loss, METH_VARARGS | METH_KEYWORDS,
     "The loss the training descends, and its gradient."},
#ifdef OQ_DOUBLE
    {"_tape", tape, METH_VARARGS, "Test hook: record or replay the straight-through surrogate."},
#endif
    {NULL, NULL, 0, NULL},
};
