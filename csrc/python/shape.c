/* Arrays of a call, by the letters of their shapes. */
#include <stdlib.h>
#include <string.h>

#include "python/function.h"

static int numpy_type(oq_kind kind)
{
    static const int types[] = {NPY_FLOAT, NPY_DOUBLE, NPY_UINT8, NPY_INT32};
    return types[kind];
}

void *oq_data(PyArrayObject *array)
{
    static double nothing;
    return PyArray_DATA(array) ? PyArray_DATA(array) : (void *)&nothing;
}

/* Hands array over to the call; NULL if that fails. */
static PyArrayObject *keep(oq_call *call, PyArrayObject *array)
{
    const bool kept = array && PyList_Append(call->keep, (PyObject *)array) == 0;
    Py_XDECREF((PyObject *)array);
    return kept ? array : NULL;
}

static bool agree_axes(oq_call *call, int count, const npy_intp *dims)
{
    if (call->axis_count >= 0)
        return count == call->axis_count && memcmp(call->axes, dims, sizeof *dims * (size_t)count) == 0;
    call->axis_count = count;
    call->size['*'] = 1;
    for (int i = 0; i < count; i++) call->size['*'] *= call->axes[i] = dims[i];
    return true;
}

/* Sets the letters that are not known yet; false where a known one differs. */
static bool agree(oq_call *call, PyArrayObject *array, const char *shape)
{
    const char *letters = shape + (*shape == '*');
    const npy_intp *dims = PyArray_DIMS(array);
    const int axes = PyArray_NDIM(array) - (int)strlen(letters);
    if (axes < 0 || (axes > 0 && letters == shape)) return false;
    for (int i = axes; *letters; letters++, i++) {
        int64_t *size = &call->size[(int)*letters];
        if (*size < 0) *size = dims[i];
        if (*size != dims[i]) return false;
    }
    return *shape != '*' || agree_axes(call, axes, dims);
}

/* "(2, 3, k)": sizes where they are known, "..." for unknown axes. */
static const char *describe(const oq_call *call, const char *shape, char text[160])
{
    size_t used = 0;
    const size_t most = 160;
    const char *letters = shape + (*shape == '*');
    const int axes = letters > shape ? call->axis_count : 0, total = abs(axes) + (int)strlen(letters);
    if (axes < 0) used += (size_t)snprintf(text, most, "..., ");
    for (int i = 0; i < axes && used < most; i++)
        used += (size_t)snprintf(text + used, most - used, "%lld, ", (long long)call->axes[i]);
    for (; *letters && used < most; letters++) {
        const int64_t size = oq_size(call, *letters);
        used += (size_t)(size < 0 ? snprintf(text + used, most - used, "%c, ", *letters)
                                  : snprintf(text + used, most - used, "%lld, ", (long long)size));
    }
    if (used < most) text[used - (total == 1 ? 1 : 2)] = '\0'; /* (3,) but (3, 4) */
    return text;
}

/* Says what was expected of an array that is kept already. */
static PyArrayObject *fail_shape(const oq_call *call, PyArrayObject *array, const char *name, const char *shape)
{
    char wanted[160];
    const int ndim = (int)strlen(shape);
    PyObject *got = PyObject_GetAttrString((PyObject *)array, "shape");
    if (got && *shape != '*' && PyArray_NDIM(array) != ndim)
        PyErr_Format(PyExc_ValueError, "%s: expected %d dimension%s, got shape %R", name, ndim,
                     ndim == 1 ? "" : "s", got);
    else if (got)
        PyErr_Format(PyExc_ValueError, "%s: expected shape (%s), got %R", name, describe(call, shape, wanted),
                     got);
    Py_XDECREF(got);
    return NULL;
}

PyArrayObject *oq_take_array(oq_call *call, PyObject *object, const char *name, oq_kind kind, const char *shape)
{
    PyArrayObject *array = keep(call, oq_array_in(object, name, numpy_type(kind)));
    return !array || agree(call, array, shape) ? array : fail_shape(call, array, name, shape);
}

static bool overlap(PyArrayObject *a, PyArrayObject *b)
{
    const char *x = PyArray_BYTES(a), *y = PyArray_BYTES(b);
    return x < y + PyArray_NBYTES(b) && y < x + PyArray_NBYTES(a);
}

PyArrayObject *oq_take_out(oq_call *call, PyObject *object, const char *name, oq_kind kind, const char *shape)
{
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != numpy_type(kind) || !PyArray_ISCARRAY(array)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a writable, C-contiguous array of %s", name,
                     kind == OQ_FLOATS ? "float32" : "the result's dtype");
        return NULL;
    }
    for (size_t i = 0; i < OQ_MAX_ARGUMENTS; i++)
        if (call->array[i] && overlap(array, call->array[i])) {
            PyErr_Format(PyExc_ValueError, "%s: shares memory with %s", name, call->function->arguments[i].name);
            return NULL;
        }
    Py_INCREF(object);
    array = keep(call, array);
    return !array || agree(call, array, shape) ? array : fail_shape(call, array, name, shape);
}

PyArrayObject *oq_make_array(oq_call *call, oq_kind kind, const char *shape)
{
    npy_intp dims[OQ_MAX_AXES];
    int ndim = 0;
    for (const char *s = shape; *s; s++) {
        for (int i = 0; *s == '*' && i < call->axis_count; i++) dims[ndim++] = call->axes[i];
        if (*s != '*') dims[ndim++] = (npy_intp)oq_size(call, *s);
    }
    return keep(call, (PyArrayObject *)PyArray_SimpleNew(ndim, dims, numpy_type(kind)));
}

PyArrayObject *oq_made_array(const oq_call *call, const char *name)
{
    const oq_argument *line = call->function->arguments;
    while (!line->name || strcmp(line->name, name) != 0) line++;
    return call->array[line - call->function->arguments];
}
