/* Online rotations of a block: fixed orthogonal matrices (math/hadamard.h) that no weight in front of them can take
 * in, multiplied at run time.  The weight behind one is stored rotated, W T, so the block computes what it did:
 * (x T) (W T)^T = x W^T.
 *   rotate_heads   before o: T_n mixes the heads, channel by channel
 *   rotate_down    before down: T_F
 *   rotate_qk      on each head of q and k behind the rotary positions: T_d, which leaves their products */
#ifndef OQ_BLOCK_ROTATION_H
#define OQ_BLOCK_ROTATION_H

#include "block/block.h"

/* Whether the input of a linear is rotated. */
bool oq_has_rotation(const oq_block_spec *spec, int linear);
/* x [rows, in] = x T, in place, and so back again: T is symmetric and orthogonal. */
oq_code oq_rotate_input(oq_context *context, const oq_block_spec *spec, int linear, oq_real *x, int64_t rows);
/* to [rows, in] = x T; where nothing is rotated, to is x. */
oq_code oq_rotated_input(oq_context *context, const oq_block_spec *spec, int linear, const oq_real *x, oq_real *to,
                         int64_t rows);
/* q [tokens, n d] and k [tokens, m d], in place. */
oq_code oq_rotate_qk(oq_context *context, const oq_block_spec *spec, oq_real *q, oq_real *k, int64_t tokens);

#endif
