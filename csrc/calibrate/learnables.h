/* Every learnable of a block as a view of one flat vector: the list is made once and gives sizes,
 * names, initial values, gradients, learning rates and what is saved. */
#ifndef OQ_CALIBRATE_LEARNABLES_H
#define OQ_CALIBRATE_LEARNABLES_H

#include "calibrate/options.h"

typedef enum { OQ_LWC_MAX, OQ_LWC_MIN, OQ_SITE_MAP, OQ_SITE_SHIFT, OQ_LAC, OQ_OFFSET } oq_learnable_kind;

typedef struct {
    oq_learnable_kind kind;
    int owner;     /* a linear for LWC and offsets of the rounding, a site for maps and shifts, an input for LAC */
    char name[24]; /* "q.lwc_max", "vo.map", "norm1.shift", "down.lac", "q.offset" */
    int64_t offset, count;
    int64_t shape[3];
    int rank;
} oq_learnable;

enum { OQ_MAX_LEARNABLES = 3 * OQ_LINEARS + 2 * OQ_SITES + OQ_INPUTS };

typedef struct {
    oq_learnable entry[OQ_MAX_LEARNABLES];
    int entries;
    int64_t total;
    int64_t adaptive; /* numbers AdamW trains: all but the offsets, which are as many as weights and come last */
    /* Entries, or -1. */
    int lwc_max[OQ_LINEARS], lwc_min[OQ_LINEARS], map[OQ_SITES], shift[OQ_SITES], lac[OQ_INPUTS], offset[OQ_LINEARS];
} oq_learnables;

void oq_learnables_list(const oq_block_spec *spec, const oq_options *options, const oq_block_weights *weights,
                        oq_learnables *list);

/* Of a single linear layer: "weight.lwc_max", "weight.lwc_min", "input.map" (options->map[OQ_SITE_NORM1]),
 * "input.shift" and "weight.offset", at the first place of each kind. */
void oq_learnables_of_layer(int64_t out, int64_t in, const oq_options *options, oq_learnables *list);

/* The entry's part of a flat vector, NULL when there is no such entry. */
static inline oq_real *oq_part(const oq_learnables *list, int entry, oq_real *flat)
{
    return entry < 0 ? NULL : flat + list->entry[entry].offset;
}
static inline const oq_real *oq_part_const(const oq_learnables *list, int entry, const oq_real *flat)
{
    return entry < 0 ? NULL : flat + list->entry[entry].offset;
}

#endif
