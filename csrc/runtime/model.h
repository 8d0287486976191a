/* A whole model ready to run: packed blocks, embedding and head as they came.  Built once, then only read, so any
 * number of decoders may share it. */
#ifndef OQ_RUNTIME_MODEL_H
#define OQ_RUNTIME_MODEL_H

#include "block/block.h"
#include "kernels/linear.h"
#include "runtime/dense.h"
#include "runtime/lanes_kernels.h"

#ifndef OQ_DOUBLE

/* Packed integers, or floats where the scheme leaves the weights alone. */
typedef struct {
    bool packed;
    oq_qlinear integers;
    oq_dense floats;
} oq_runtime_linear;

typedef struct {
    oq_block_spec spec; /* of the model's shape; windows and rotary positions may differ */
    int64_t rope_table; /* which of a decoder's */
    oq_runtime_linear linear[OQ_LINEARS];
    oq_runtime_linear *of_expert[OQ_LINEARS]; /* [E] in its place, of gate, up and down */
    const float *gain[OQ_NORMS], *norm_bias[OQ_NORMS];
    oq_dense map[OQ_INPUT_NORMS]; /* online: the inverse, transposed; values NULL: none */
    oq_quantizer x;               /* of the linears' inputs */
    /* Of the inputs: Kronecker maps (the inverses) and logits of clipping, or NULL. */
    const float *left[OQ_INPUTS], *right[OQ_INPUTS], *clip[OQ_INPUTS];
    bool set;
    void *own; /* memory of a block that does not fit its slot */
} oq_runtime_block;

/* What happens before the first block; NULL and 0: nothing. Borrowed. */
typedef struct {
    double scale;             /* of the embedding's rows */
    const float *gain, *bias; /* [H] of a norm */
    const float *positions;   /* [position_count, H], added */
    int64_t position_count;
} oq_runtime_entry;

typedef struct {
    oq_block_spec spec;
    oq_activation_quantizers quantizers;
    int64_t layers, bytes; /* bytes: of the blocks */
    const char *kernel;    /* of the packed linears; NULL: the best */
    const oq_lanes_kernels *lanes;
    void *slots; /* memory of all blocks, `slot` bytes each: one piece, so that it gets large pages */
    size_t slot;
    oq_dense embedding;     /* [V, H], borrowed */
    oq_runtime_linear head; /* [V, H], copied or packed: it is read for every token */
    void *head_memory;
    const float *final_gain, *final_bias; /* [H], borrowed */
    oq_runtime_entry entry;
    double logit_cap; /* logits become cap tanh(logit / cap); 0: they stay */
    oq_runtime_block *blocks;
} oq_runtime_model;

/* What a block is made of, in the result directory's own layout; not needed after oq_runtime_set_block. */
typedef struct {
    oq_block_spec spec;
    int64_t rope_table;
    oq_schemes schemes;                     /* of the weights; 16 bits: floats */
    oq_quantizer x;                         /* of the linears' inputs */
    const uint8_t *codes[OQ_LINEARS];       /* bit streams [out, oq_packed_width] */
    const float *scales[OQ_LINEARS];        /* [out, groups] */
    const uint8_t *zero_points[OQ_LINEARS]; /* [out, groups] */
    oq_block_weights floats;                /* weights of 16 bits; biases, norms, maps */
} oq_runtime_source;

/* spec, quantizers, layers, kernel, embedding and final norm are set by the caller. */
oq_code oq_runtime_create(oq_context *context, oq_runtime_model *model, const oq_dense *head);
oq_code oq_runtime_set_block(oq_context *context, oq_runtime_model *model, int64_t index,
                             const oq_runtime_source *source);
void oq_runtime_destroy(oq_runtime_model *model);

#endif

#endif
