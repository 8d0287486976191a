#include "python/learned.h"

#include <stdio.h>
#include <string.h>

static int put(PyObject *dict, const char *key, PyArrayObject *array)
{
    const int status = array ? PyDict_SetItemString(dict, key, (PyObject *)array) : -1;
    oq_array_release(array);
    return status;
}

PyObject *oq_learnables_to_dict(const oq_learnables *list, const oq_real *theta)
{
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        npy_intp shape[3];
        for (int k = 0; k < e->rank; k++) shape[k] = e->shape[k];
        PyArrayObject *array = oq_array_new(OQ_NPY_REAL, e->rank, shape);
        if (array) memcpy(oq_array_reals(array), theta + e->offset, sizeof *theta * (size_t)e->count);
        if (put(dict, e->name, array) < 0) Py_CLEAR(dict);
    }
    return dict;
}

int oq_learnables_from_dict(const oq_learnables *list, PyObject *dict, oq_real *theta)
{
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "learnables must be a dict of arrays");
        return -1;
    }
    for (int i = 0; i < list->entries; i++) {
        const oq_learnable *e = &list->entry[i];
        npy_intp shape[3];
        for (int k = 0; k < e->rank; k++) shape[k] = e->shape[k];
        PyObject *object = PyDict_GetItemString(dict, e->name); /* borrowed */
        if (!object) {
            PyErr_Format(PyExc_ValueError, "learnables lack \"%s\"", e->name);
            return -1;
        }
        PyArrayObject *array = oq_array_in(object, e->name, OQ_NPY_REAL, e->rank);
        if (!array) return -1;
        const int fits = oq_array_expect(array, e->name, e->rank, shape) == 0;
        if (fits) memcpy(theta + e->offset, oq_array_reals(array), sizeof *theta * (size_t)e->count);
        oq_array_release(array);
        if (!fits) return -1;
    }
    return 0;
}

void *oq_put_new(PyObject *dict, const char *key, int type, int ndim, npy_intp a, npy_intp b)
{
    PyArrayObject *array = oq_array_new(type, ndim, (npy_intp[]){a, b});
    void *data = array ? PyArray_DATA(array) : NULL;
    return put(dict, key, array) < 0 ? NULL : data;
}

/* The same at dict[owner.what]. */
static void *create(PyObject *dict, const char *owner, const char *what, int type, int ndim, npy_intp a,
                    npy_intp b)
{
    char key[40];
    snprintf(key, sizeof key, "%s.%s", owner, what);
    return oq_put_new(dict, key, type, ndim, a, b);
}

static int create_linear(PyObject *dict, const oq_block_args *args, int i, oq_folded *folded)
{
    const oq_linear_shape shape = oq_shape_of(&args->spec, i);
    const oq_groups groups = oq_weight_groups(&args->spec, &args->options, i);
    const npy_intp per_row = oq_groups_per_row(&groups);
    const char *name = oq_linear_names[i];
    if (args->weights.bias[i] && !(folded->bias[i] = create(dict, name, "bias", OQ_NPY_REAL, 1, shape.out, 0)))
        return -1;
    if (!oq_is_quantized(args->options.weight))
        return (folded->weight[i] = create(dict, name, "weight", OQ_NPY_REAL, 2, shape.out, shape.in)) ? 0 : -1;
    folded->codes[i] = create(dict, name, "codes", NPY_UINT8, 2, shape.out, shape.in);
    if (folded->codes[i]) folded->scale[i] = create(dict, name, "scale", OQ_NPY_REAL, 2, shape.out, per_row);
    if (folded->scale[i])
        folded->zero_point[i] = create(dict, name, "zero_point", NPY_UINT8, 2, shape.out, per_row);
    return folded->zero_point[i] ? 0 : -1;
}

static int create_norm(PyObject *dict, const oq_block_args *args, int i, oq_folded *folded)
{
    const npy_intp H = args->spec.hidden;
    const char *name = oq_norm_names[i];
    const int site = i == OQ_NORM1 ? OQ_SITE_NORM1 : OQ_SITE_NORM2;
    if (!(folded->gain[i] = create(dict, name, "weight", OQ_NPY_REAL, 1, H, 0))) return -1;
    if (args->weights.norm_bias[i] && !(folded->norm_bias[i] = create(dict, name, "bias", OQ_NPY_REAL, 1, H, 0)))
        return -1;
    if (args->options.map[site] == OQ_MAP_DENSE &&
        !(folded->map_inverse[i] = create(dict, name, "inverse", OQ_NPY_REAL, 2, H, H)))
        return -1;
    return 0;
}

PyObject *oq_folded_arrays(const oq_block_args *args, oq_folded *folded)
{
    PyObject *dict = PyDict_New();
    memset(folded, 0, sizeof *folded);
    for (int i = 0; dict && i < OQ_LINEARS; i++)
        if (oq_has_linear(&args->spec, i) && create_linear(dict, args, i, folded) < 0) Py_CLEAR(dict);
    for (int i = 0; dict && i < OQ_NORMS; i++)
        if (create_norm(dict, args, i, folded) < 0) Py_CLEAR(dict);
    return dict;
}
