#if defined(__x86_64__) && defined(__GNUC__) && !defined(OQ_DOUBLE)

#define OQ_ISA 2
#include "runtime/lanes_template.h"

extern const oq_lanes_kernels oq_lanes_avx512;
const oq_lanes_kernels oq_lanes_avx512 = {"avx512", dense, keys, values, scores, weigh};

#else
typedef int oq_lanes_avx512_needs_x86;
#endif
