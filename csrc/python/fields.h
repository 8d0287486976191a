/* Typed fields of the dictionaries Python hands over; messages name the dictionary and the key. */
#ifndef OQ_PYTHON_FIELDS_H
#define OQ_PYTHON_FIELDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Each returns 0, or -1 with KeyError-like ValueError or TypeError set. */
int oq_field_int(PyObject *dict, const char *dict_name, const char *key, int64_t *value);
int oq_field_double(PyObject *dict, const char *dict_name, const char *key, double *value);
int oq_field_bool(PyObject *dict, const char *dict_name, const char *key, bool *value);
/* choices ends with NULL; *index is the one that equals the string. */
int oq_field_choice(PyObject *dict, const char *dict_name, const char *key, const char *const *choices,
                    int *index);

#endif
