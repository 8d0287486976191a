#include "base/real.h"

#ifndef OQ_DOUBLE

#define OQ_ISA 0
#include "runtime/lanes_template.h"

#include "base/cpu.h"

const oq_lanes_kernels oq_lanes_plain = {"plain", dense, keys, values, scores, weigh};

#if defined(__x86_64__) && defined(__GNUC__)
extern const oq_lanes_kernels oq_lanes_avx512, oq_lanes_avx2;
#endif

const oq_lanes_kernels *oq_lanes_find(const char *name)
{
    const oq_lanes_kernels *runnable[3];
    int count = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    if (oq_cpu_features()->avx512f) runnable[count++] = &oq_lanes_avx512;
    if (oq_cpu_features()->avx2) runnable[count++] = &oq_lanes_avx2;
#endif
    runnable[count++] = &oq_lanes_plain;
    for (int i = 0; i < count; i++)
        if (!name || strcmp(runnable[i]->name, name) == 0) return runnable[i];
    return NULL;
}

#endif
