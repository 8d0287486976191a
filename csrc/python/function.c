#include "python/function.h"

#include <string.h>

#include "base/parallel.h"
#include "math/check.h"
#include "python/raise.h"

enum { LEAVABLE = OQ_OPTIONAL | OQ_KEYWORD };

static bool is_array(const oq_argument *a) { return a->kind <= OQ_INDICES; }

/* objects [inputs] by Python's own parser, whose format is made from the table: "OO|O$O:name". */
static int split(const oq_function *f, PyObject *positional, PyObject *keywords, PyObject **o)
{
    char format[OQ_MAX_INPUTS + 64], *end = format, *names[OQ_MAX_INPUTS + 1], **name = names;
    unsigned seen = 0;
    for (const oq_argument *a = f->arguments; a < f->arguments + f->count; a++) {
        if (a->flags & OQ_MADE) continue;
        if (!(seen & LEAVABLE) && (a->flags & LEAVABLE)) *end++ = '|';
        if (!(seen & OQ_KEYWORD) && (a->flags & OQ_KEYWORD)) *end++ = '$';
        *end++ = 'O';
        seen |= a->flags;
        *name++ = (char *)a->name;
    }
    *name = NULL;
    snprintf(end, (size_t)(format + sizeof format - end), ":%s", f->name);
    /* More pointers than the format has letters do no harm. */
    return PyArg_ParseTupleAndKeywords(positional, keywords, format, names, o, o + 1, o + 2, o + 3, o + 4, o + 5,
                                       o + 6, o + 7, o + 8, o + 9, o + 10, o + 11, o + 12, o + 13, o + 14, o + 15)
               ? 0
               : -1;
}

static int store_array(oq_call *call, ptrdiff_t line, PyArrayObject *array, char *to)
{
    if (!array) return -1;
    void *data = oq_data(array);
    call->array[line] = array;
    memcpy(to, &data, sizeof data);
    return 0;
}

/* object NULL: left out. */
static int take(oq_call *call, const oq_argument *a, PyObject *object, char *base)
{
    void *to = a->kind == OQ_THREAD_COUNT ? (void *)&call->threads : base + a->at;
    if (!object && (a->flags & OQ_NEEDED || !(a->flags & LEAVABLE))) {
        PyErr_Format(PyExc_TypeError, "%s() needs %s", call->function->name, a->name);
        return -1;
    }
    const bool none = object == Py_None && a->flags & (OQ_NULLABLE | LEAVABLE);
    if (!is_array(a)) return oq_take_scalar(a, none && a->kind >= OQ_STRING ? NULL : object, a->name, to);
    PyArrayObject *(*take_it)(oq_call *, PyObject *, const char *, oq_kind, const char *) =
        a->flags & OQ_INTO ? oq_take_out : oq_take_array;
    const bool given = object && !none;
    if (!given && !(a->flags & OQ_INTO)) return 0;
    PyArrayObject *array = given ? take_it(call, object, a->name, a->kind, a->shape)
                                 : oq_make_array(call, a->kind, a->shape);
    return store_array(call, a - call->function->arguments, array, to);
}

static int make(oq_call *call, const oq_argument *a, char *base)
{
    const void *wanted = base;
    if (a->when) memcpy(&wanted, base + a->when, sizeof wanted);
    if (!is_array(a) || !wanted) return 0;
    return store_array(call, a - call->function->arguments, oq_make_array(call, a->kind, a->shape), base + a->at);
}

/* The table, line by line. */
static int prepare(oq_call *call, PyObject *const *object, values *v)
{
    const oq_function *f = call->function;
    for (const oq_argument *a = f->arguments; a < f->arguments + f->count; a++) {
        const int failed = a->flags & OQ_MADE ? make(call, a, (char *)v) : take(call, a, *object++, (char *)v);
        if (failed || (a->then && a->then(call, v) < 0)) return -1;
    }
    return 0;
}

/* Every array that has to be; along its last axis run the columns. */
static oq_code check_finite(oq_call *call)
{
    for (size_t i = 0; i < call->function->count; i++) {
        const oq_argument *a = &call->function->arguments[i];
        PyArrayObject *array = call->array[i];
        if (!array || !(a->flags & OQ_FINITE)) continue;
        const int64_t width = PyArray_DIM(array, PyArray_NDIM(array) - 1), count = PyArray_SIZE(array);
        const int64_t rows = width ? count / width : 0;
        OQ_TRY(a->kind == OQ_REALS
                   ? oq_check_finite(&call->context, a->name, oq_data(array), rows, width)
                   : oq_check_finite_doubles(&call->context, a->name, oq_data(array), rows, width));
    }
    return OQ_OK;
}

/* One result as Python has it. */
static PyObject *result(const oq_call *call, const oq_argument *a, const char *base)
{
    PyArrayObject *array = call->array[a - call->function->arguments];
    if (a->kind == OQ_LONG) return PyLong_FromLongLong(*(const int64_t *)(const void *)(base + a->at));
    if (a->kind == OQ_STRING) return PyUnicode_FromString(*(const char *const *)(const void *)(base + a->at));
    if (a->kind == OQ_NUMBER) return PyFloat_FromDouble(*(const double *)(const void *)(base + a->at));
    return array ? PyArray_Return((PyArrayObject *)Py_NewRef((PyObject *)array)) : Py_NewRef(Py_None);
}

static PyObject *results(oq_call *call, values *v)
{
    const oq_function *f = call->function;
    PyObject *list = PyList_New(0);
    for (const oq_argument *a = f->arguments; list && a < f->arguments + f->count; a++) {
        if (!(a->flags & (OQ_MADE | OQ_INTO)) || a->kind == OQ_STEP) continue;
        PyObject *item = result(call, a, (const char *)v);
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    PyObject *all = !list                    ? NULL
                    : PyList_Size(list) == 1 ? Py_NewRef(PyList_GetItem(list, 0))
                                             : PyList_AsTuple(list);
    Py_XDECREF(list);
    return all;
}

/* Takes the GIL for a moment: Ctrl-C leaves its exception set in this thread. */
static bool interrupted(void)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    const bool raised = PyErr_CheckSignals() < 0;
    PyGILState_Release(state);
    return raised;
}

/* threads 0: as many as OpenMP would use. */
static int begin(oq_context *context, int threads)
{
    if (threads < 0) {
        PyErr_Format(PyExc_ValueError, "threads: expected at least 0 (0: all), got %d", threads);
        return -1;
    }
    context->threads = threads ? threads : oq_parallel_default_threads();
    context->interrupted = interrupted;
    context->arena = oq_arena_create();
    if (!context->arena) PyErr_SetString(PyExc_MemoryError, "out of memory: no scratch memory");
    return context->arena ? 0 : -1;
}

static PyObject *execute(oq_call *call, values *v)
{
    const oq_function *f = call->function;
    PyObject *answer = NULL;
    if (begin(&call->context, call->threads) < 0) return NULL;
    PyThreadState *state = PyEval_SaveThread(); /* the GIL is free from here */
    oq_code code = check_finite(call);
    if (code == OQ_OK) code = f->run(call, v);
    PyEval_RestoreThread(state);
    if (code == OQ_OK)
        answer = f->finish ? f->finish(call, v) : results(call, v);
    else if (code != OQ_CANCELLED || !PyErr_Occurred()) /* what stopped the call goes on */
        oq_raise(&call->context.error);
    oq_arena_destroy(call->context.arena);
    return answer;
}

PyObject *oq_invoke(const oq_function *function, values *v, PyObject *positional, PyObject *keywords)
{
    PyObject *objects[OQ_MAX_INPUTS] = {NULL}, *answer = NULL;
    oq_call call = {.function = function, .threads = 1, .axis_count = -1};
    for (size_t i = 0; i < OQ_COUNT(call.size); i++) call.size[i] = -1;
    if (split(function, positional, keywords, objects) < 0 || !(call.keep = PyList_New(0))) return NULL;
    if (prepare(&call, objects, v) == 0) answer = execute(&call, v);
    Py_DECREF(call.keep);
    return answer;
}
