#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "kernels/kernel.h"

/* Best for few rows first. */
static const oq_kernel *const table[] = {&oq_kernel_avx512_vnni, &oq_kernel_avx2, &oq_kernel_amx,
                                         &oq_kernel_onednn, &oq_kernel_reference};

enum { COUNT = sizeof table / sizeof *table };

bool oq_kernel_never(void) { return false; }

const char *oq_kernel_name(int index)
{
    for (int i = 0; i < COUNT; i++)
        if (table[i]->available() && index-- == 0) return table[i]->name;
    return NULL;
}

/* The kernel of a name, the best for NULL; NULL where there is none or it cannot run here. */
static const oq_kernel *find(const char *name)
{
    for (int i = 0; i < COUNT; i++)
        if (table[i]->available() && (!name || strcmp(name, table[i]->name) == 0)) return table[i];
    return NULL;
}

/* What is best for many rows. */
static const oq_kernel *find_wide(const oq_kernel *best)
{
    return oq_kernel_amx.available() ? &oq_kernel_amx : best;
}

oq_code oq_qlinear_use(oq_context *context, oq_qlinear *linear, const char *kernel)
{
    const char *name = kernel ? kernel : getenv("OMNIQUANT_KERNEL");
    if (name && !*name) name = NULL;
    const oq_kernel *found = find(name);
    if (!found)
        return oq_fail(context, OQ_UNSUPPORTED, "kernel \"%.32s\": there is none of this name that runs here",
                       name);
    linear->kernel = found;
    linear->wide = name ? found : find_wide(found);
    return OQ_OK;
}

const char *oq_qlinear_kernel(const oq_qlinear *linear) { return linear->kernel->name; }
