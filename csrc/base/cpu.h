/* Instruction sets of this processor, found once. */
#ifndef OQ_BASE_CPU_H
#define OQ_BASE_CPU_H

#include <stdbool.h>

typedef struct {
    bool avx2, avx512f, avx512_vnni, avx512_bf16, amx_int8, amx_bf16;
} oq_cpu;

const oq_cpu *oq_cpu_features(void);
/* "avx2 avx512f ..." for reports; static storage. */
const char *oq_cpu_names(void);

#endif
