#include "python/fields.h"

#include <string.h>

/* A new reference, or NULL with an exception. */
static PyObject *field(PyObject *dict, const char *dict_name, const char *key)
{
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "%s must be a dict", dict_name);
        return NULL;
    }
    PyObject *name = PyUnicode_FromString(key);
    if (!name) return NULL;
    PyObject *value = PyDict_GetItemWithError(dict, name);
    Py_DECREF(name);
    if (!value && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s lacks \"%s\"", dict_name, key);
    Py_XINCREF(value);
    return value;
}

/* A conversion failed: say which field it was. */
static int bad_field(const char *dict_name, const char *key, const char *expected)
{
    if (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s[\"%s\"] must be %s", dict_name, key, expected);
    }
    return -1;
}

int oq_field_int(PyObject *dict, const char *dict_name, const char *key, int64_t *value)
{
    PyObject *object = field(dict, dict_name, key);
    if (!object) return -1;
    PyObject *index = PyNumber_Index(object);
    Py_DECREF(object);
    if (!index) return bad_field(dict_name, key, "an integer");
    *value = PyLong_AsLongLong(index);
    Py_DECREF(index);
    return PyErr_Occurred() ? bad_field(dict_name, key, "a 64-bit integer") : 0;
}

int oq_field_double(PyObject *dict, const char *dict_name, const char *key, double *value)
{
    PyObject *object = field(dict, dict_name, key);
    if (!object) return -1;
    *value = PyFloat_AsDouble(object);
    Py_DECREF(object);
    return PyErr_Occurred() ? bad_field(dict_name, key, "a number") : 0;
}

int oq_field_bool(PyObject *dict, const char *dict_name, const char *key, bool *value)
{
    PyObject *object = field(dict, dict_name, key);
    if (!object) return -1;
    const int truth = PyObject_IsTrue(object);
    Py_DECREF(object);
    *value = truth > 0;
    return truth < 0 ? -1 : 0;
}

int oq_field_choice(PyObject *dict, const char *dict_name, const char *key, const char *const *choices, int *index)
{
    PyObject *object = field(dict, dict_name, key);
    if (!object) return -1;
    PyObject *bytes = PyUnicode_Check(object) ? PyUnicode_AsUTF8String(object) : NULL;
    Py_DECREF(object);
    if (!bytes) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_TypeError, "%s[\"%s\"] must be a string", dict_name, key);
        return -1;
    }
    const char *text = PyBytes_AsString(bytes);
    int found = -1;
    for (int i = 0; choices[i]; i++)
        if (strcmp(text, choices[i]) == 0) found = i;
    if (found < 0) PyErr_Format(PyExc_ValueError, "%s[\"%s\"]: unknown \"%s\"", dict_name, key, text);
    Py_DECREF(bytes);
    *index = found;
    return found < 0 ? -1 : 0;
}
