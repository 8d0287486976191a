/* Numbers, truth values, named choices, and dicts of them; messages name the place. */
#include <limits.h>
#include <string.h>

#include "python/function.h"

static int fail_type(const char *where, const char *expected)
{
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError) &&
        !PyErr_ExceptionMatches(PyExc_OverflowError))
        return -1;
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s must be %s", where, expected);
    return -1;
}

static int fail_range(const char *where, const char *expected, double value)
{
    char text[200];
    snprintf(text, sizeof text, "%s: expected %s, got %.10g", where, expected, value);
    PyErr_SetString(PyExc_ValueError, text);
    return -1;
}

/* The range is an interval as it is written, or "bits". */
static int check_range(const oq_argument *a, const char *where, double value)
{
    char opening = '[', closing = ')', expected[64];
    const char *range = a->range;
    double least = 0, most = 0;
    if (strcmp(range, "bits") == 0)
        return (value >= 2 && value <= 8) || (value >= 16 && value <= 64)
                   ? 0
                   : fail_range(where, "2..8, or 16 for none", value);
    sscanf(range, "%c%lf, %lf%c", &opening, &least, &most, &closing);
    const bool above = opening == '[' ? value >= least : value > least;
    if (above && (closing == ']' ? value <= most : value < most)) return 0;
    if (isinf(most) && opening == '[')
        snprintf(expected, sizeof expected,
                 a->kind == OQ_NUMBER ? "a finite number of at least %g" : "at least %g", least);
    else
        snprintf(expected, sizeof expected, "a number in %s", range);
    return fail_range(where, expected, value);
}

static int take_integer(PyObject *object, const char *where, long long least, long long most, long long *value)
{
    PyObject *index = PyNumber_Index(object);
    if (!index) return fail_type(where, "an integer");
    *value = PyLong_AsLongLong(index);
    Py_DECREF(index);
    if (PyErr_Occurred() || *value < least || *value > most)
        return fail_type(where, most == INT_MAX ? "a 32-bit integer" : "a 64-bit integer");
    return 0;
}

/* "silu, gelu or relu" */
static const char *list_choices(const char *const *choices, char text[160])
{
    size_t used = 0;
    const size_t most = 160;
    for (; *choices && used < most; choices++)
        if (**choices) used += (size_t)snprintf(text + used, most - used, "%s%s", used ? ", " : "", *choices);
    return text;
}

/* The object's own characters. */
static int take_string(PyObject *object, const char *where, const char **text)
{
    *text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, NULL) : NULL;
    return *text ? 0 : fail_type(where, "a string");
}

static int take_choice(PyObject *object, const char *where, const char *const *choices, int *place)
{
    char list[160];
    const char *given;
    if (take_string(object, where, &given) < 0) return -1;
    for (*place = 0; choices[*place]; ++*place)
        if (*choices[*place] && strcmp(given, choices[*place]) == 0) return 0;
    PyErr_Format(PyExc_ValueError, "%s: expected one of %s; got \"%s\"", where, list_choices(choices, list),
                 given);
    return -1;
}

/* A truth value, or which of two strings it is. */
static int take_flag(const oq_argument *a, PyObject *object, const char *where, bool *flag)
{
    int value;
    if (a->choices && take_choice(object, where, a->choices, &value) < 0) return -1;
    if (!a->choices && (value = PyObject_IsTrue(object)) < 0) return -1;
    *flag = value != 0;
    return 0;
}

/* Every field of the dict fills its place in the struct at `to`; dict NULL: left out. */
static int take_fields(const oq_argument *dict, PyObject *object, char *to)
{
    char where[80];
    if (object && !PyDict_Check(object)) return fail_type(dict->name, "a dict");
    for (const oq_argument *a = dict->fields; a->name; a++) {
        PyObject *item = object ? PyDict_GetItemString(object, a->name) : NULL; /* borrowed */
        if (object && !item && !(a->flags & OQ_OPTIONAL)) {
            PyErr_Format(PyExc_ValueError, "%s lacks \"%s\"", dict->name, a->name);
            return -1;
        }
        snprintf(where, sizeof where, "%s[\"%s\"]", dict->name, a->name);
        if (a->flags & OQ_OPTIONAL && item == Py_None) item = NULL;
        if (oq_take_scalar(a, item, where, to + a->at) < 0) return -1;
    }
    return 0;
}

static int leave_out(const oq_argument *a, void *to)
{
    switch (a->kind) {
    case OQ_LONG: *(int64_t *)to = (int64_t)a->otherwise; break;
    case OQ_NUMBER: *(double *)to = a->otherwise; break;
    case OQ_FLAG: *(bool *)to = a->otherwise != 0; break;
    case OQ_DICT: return take_fields(a, NULL, to);
    case OQ_STRING: *(const char **)to = NULL; break;
    case OQ_OBJECT: *(PyObject **)to = NULL; break;
    default: *(int *)to = (int)a->otherwise;
    }
    return 0;
}

static int take_number(const oq_argument *a, PyObject *object, const char *where, void *to)
{
    const bool wide = a->kind == OQ_LONG;
    long long integer = 0;
    double number;
    if (a->kind == OQ_NUMBER) {
        *(double *)to = number = PyFloat_AsDouble(object);
        if (PyErr_Occurred()) return fail_type(where, "a number");
    } else {
        if (take_integer(object, where, wide ? LLONG_MIN : INT_MIN, wide ? LLONG_MAX : INT_MAX, &integer) < 0)
            return -1;
        if (wide)
            *(int64_t *)to = integer;
        else
            *(int *)to = (int)integer;
        number = (double)integer;
    }
    return a->range ? check_range(a, where, number) : 0;
}

int oq_take_scalar(const oq_argument *a, PyObject *object, const char *where, void *to)
{
    if (!object) return leave_out(a, to);
    if (a->kind == OQ_DICT) return take_fields(a, object, to);
    if (a->kind == OQ_FLAG) return take_flag(a, object, where, to);
    if (a->choices) return take_choice(object, where, a->choices, to);
    if (a->kind == OQ_STRING) return take_string(object, where, to);
    if (a->kind != OQ_OBJECT) return take_number(a, object, where, to);
    *(PyObject **)to = object; /* borrowed */
    return 0;
}
