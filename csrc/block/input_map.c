#include "block/input_map.h"

#include <string.h>

oq_kronecker oq_input_factors(const oq_block_spec *spec, int input)
{
    if (input == OQ_INPUT_O) return (oq_kronecker){.a = spec->heads, .b = spec->head_dim};
    const int64_t width = input == OQ_INPUT_DOWN ? spec->ffn : spec->hidden, a = oq_kronecker_left(width);
    return (oq_kronecker){.a = a, .b = width / a};
}

static oq_kronecker map_of(const oq_block_spec *spec, const oq_block_weights *weights, int input)
{
    oq_kronecker map = oq_input_factors(spec, input);
    map.left = weights->left[input];
    map.right = weights->right[input];
    return map;
}

oq_code oq_input_map(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights, int input,
                     const oq_real *x, oq_real *to, int64_t rows)
{
    const oq_kronecker map = map_of(spec, weights, input);
    return map.left ? oq_kronecker_forward(context, &map, x, to, rows) : OQ_OK;
}

oq_code oq_input_map_backward(oq_context *context, const oq_block_spec *spec, const oq_block_weights *weights,
                              const oq_block_gradients *gradients, int input, const oq_real *x, oq_real *d,
                              int64_t rows)
{
    const oq_kronecker map = map_of(spec, weights, input);
    if (!map.left) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_real *dx;
    OQ_NEW(context, dx, rows * map.a * map.b);
    OQ_TRY(oq_kronecker_backward(context, &map, x, d, gradients->left[input], gradients->right[input], dx, rows));
    memcpy(d, dx, sizeof *d * (size_t)(rows * map.a * map.b));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}
