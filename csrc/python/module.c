/* The extension module omniquant._core, or _core_double (test-only, OQ_DOUBLE). */
#define OQ_IMPORTS_NUMPY
#include "python/numpy_api.h"
#include "python/topics.h"

#ifdef OQ_DOUBLE
#define MODULE_NAME "omniquant._core_double"
#define MODULE_INIT PyInit__core_double
#else
#define MODULE_NAME "omniquant._core"
#define MODULE_INIT PyInit__core
#endif

#define METHODS_OF(name) oq_##name##_methods,
static PyMethodDef *const topics[] = {OQ_TOPICS(METHODS_OF)};

static int execute(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    for (size_t i = 0; i < sizeof topics / sizeof *topics; ++i) {
        if (PyModule_AddFunctions(module, topics[i]) < 0) return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = MODULE_NAME,
    .m_doc = "The C core of omniquant: see omniquant/_core.pyi.",
    .m_slots = slots,
};

PyMODINIT_FUNC MODULE_INIT(void) { return PyModuleDef_Init(&definition); }
