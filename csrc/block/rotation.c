#include "block/rotation.h"

#include <string.h>

#include "math/hadamard.h"

bool oq_has_rotation(const oq_block_spec *spec, int linear)
{
    return (linear == OQ_O && spec->rotate_heads) || (linear == OQ_DOWN && spec->rotate_down);
}

oq_code oq_rotate_input(oq_context *context, const oq_block_spec *spec, int linear, oq_real *x, int64_t rows)
{
    if (!oq_has_rotation(spec, linear)) return OQ_OK;
    if (linear == OQ_DOWN) return oq_hadamard(context, x, rows, spec->ffn, 1);
    return oq_hadamard(context, x, rows, spec->heads, spec->head_dim);
}

oq_code oq_rotated_input(oq_context *context, const oq_block_spec *spec, int linear, const oq_real *x, oq_real *to,
                         int64_t rows)
{
    if (!oq_has_rotation(spec, linear)) return OQ_OK;
    memcpy(to, x, sizeof *x * (size_t)(rows * oq_shape_of(spec, linear).in));
    return oq_rotate_input(context, spec, linear, to, rows);
}

oq_code oq_rotate_qk(oq_context *context, const oq_block_spec *spec, oq_real *q, oq_real *k, int64_t tokens)
{
    if (!spec->rotate_qk) return OQ_OK;
    OQ_TRY(oq_hadamard(context, q, tokens * spec->heads, spec->head_dim, 1));
    return oq_hadamard(context, k, tokens * spec->kv_heads, spec->head_dim, 1);
}
