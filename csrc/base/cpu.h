/* Instruction sets of this processor, found once. */
#ifndef OQ_BASE_CPU_H
#define OQ_BASE_CPU_H

#include <stdbool.h>

typedef struct {
    bool avx2, avx512f, avx512_vnni, avx512_bf16, amx_int8, amx_bf16;
    bool fast_bf16; /* bfloat16 products at twice the rate of float ones, or more */
} oq_cpu;

const oq_cpu *oq_cpu_features(void);
/* "avx2 avx512f ..." for reports; static storage. */
const char *oq_cpu_names(void);

#endif
