#include <stdlib.h>
#include <string.h>

#include "kernels/kernel.h"

/* Best first. */
static const oq_kernel *const table[] = {&oq_kernel_avx512_vnni, &oq_kernel_avx2, &oq_kernel_reference};

enum { COUNT = sizeof table / sizeof *table };

const char *oq_kernel_name(int index)
{
    for (int i = 0; i < COUNT; i++)
        if (table[i]->available() && index-- == 0) return table[i]->name;
    return NULL;
}

const oq_kernel *oq_kernel_find(const char *name)
{
    for (int i = 0; i < COUNT; i++)
        if (table[i]->available() && (!name || strcmp(name, table[i]->name) == 0)) return table[i];
    return NULL;
}

oq_code oq_qlinear_use(oq_context *context, oq_qlinear *linear, const char *kernel)
{
    const char *name = kernel ? kernel : getenv("OMNIQUANT_KERNEL");
    if (name && !*name) name = NULL;
    const oq_kernel *found = oq_kernel_find(name);
    if (!found)
        return oq_fail(context, OQ_UNSUPPORTED, "kernel %s: there is none of this name that runs here", name);
    linear->kernel = found;
    return OQ_OK;
}

const char *oq_qlinear_kernel(const oq_qlinear *linear) { return linear->kernel->name; }
