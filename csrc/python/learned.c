#include "python/learned.h"

#include <string.h>

/* The learnable's shape as letters, whose sizes are set. */
static const char *shape_of(oq_call *call, const oq_learnable *e)
{
    const char *letters = "xyz";
    for (int i = 0; i < e->rank; i++) call->size[(int)letters[i]] = e->shape[i];
    return e->rank == 3 ? letters : e->rank == 2 ? "xy" : "x";
}

PyObject *oq_learnables_to_dict(oq_call *call, const oq_learnables *list, const oq_real *theta)
{
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        PyArrayObject *array = oq_make_array(call, OQ_REALS, shape_of(call, e));
        if (array) memcpy(oq_data(array), theta + e->offset, sizeof *theta * (size_t)e->count);
        if (!array || PyDict_SetItemString(dict, e->name, (PyObject *)array) < 0) Py_CLEAR(dict);
    }
    return dict;
}

int oq_learnables_from_dict(oq_call *call, const oq_learnables *list, PyObject *dict, oq_real *theta)
{
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "learnables must be a dict of arrays");
        return -1;
    }
    for (int i = 0; i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        PyObject *object = PyDict_GetItemString(dict, e->name); /* borrowed */
        if (!object) {
            PyErr_Format(PyExc_ValueError, "learnables lack \"%s\"", e->name);
            return -1;
        }
        PyArrayObject *array = oq_take_array(call, object, e->name, OQ_REALS, shape_of(call, e));
        if (!array) return -1;
        memcpy(theta + e->offset, oq_data(array), sizeof *theta * (size_t)e->count);
    }
    return 0;
}

PyObject *oq_new_dict(oq_call *call)
{
    PyObject *dict = PyDict_New();
    const bool kept = dict && PyList_Append(call->keep, dict) == 0;
    Py_XDECREF(dict);
    return kept ? dict : NULL;
}

int oq_put_tensors(oq_call *call, PyObject *dict, const char *owner, const oq_tensor *tensors, size_t count)
{
    char key[48];
    for (const oq_tensor *t = tensors; t < tensors + count; t++) {
        if (!t->wanted) continue;
        PyArrayObject *array = oq_make_array(call, t->kind, t->shape);
        snprintf(key, sizeof key, "%s%s%s", owner, *owner ? "." : "", t->key);
        if (!array || PyDict_SetItemString(dict, key, (PyObject *)array) < 0) return -1;
        void *data = oq_data(array);
        memcpy(t->to, &data, sizeof data);
    }
    return 0;
}
