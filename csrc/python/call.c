#include "python/call.h"

#include <string.h>

#include "base/parallel.h"
#include "python/raise.h"

/* Takes the GIL for a moment: Ctrl-C leaves its exception set in this thread. */
static bool interrupted(void)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    const bool raised = PyErr_CheckSignals() < 0;
    PyGILState_Release(state);
    return raised;
}

int oq_call_begin(oq_context *context, int threads)
{
    memset(context, 0, sizeof *context);
    if (threads < 0) {
        PyErr_Format(PyExc_ValueError, "threads: expected at least 0 (0: all), got %d", threads);
        return -1;
    }
    context->threads = threads ? threads : oq_parallel_default_threads();
    context->interrupted = interrupted;
    context->arena = oq_arena_create();
    if (context->arena) return 0;
    PyErr_SetString(PyExc_MemoryError, "out of memory: no scratch memory");
    return -1;
}

PyObject *oq_call_end(oq_context *context, oq_code code, PyObject *result)
{
    oq_arena_destroy(context->arena);
    if (code == OQ_OK) return result;
    Py_XDECREF(result);
    if (code == OQ_CANCELLED && PyErr_Occurred()) return NULL; /* what stopped the call goes on */
    return oq_raise(&context->error);
}
