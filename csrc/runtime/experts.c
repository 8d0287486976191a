#include "runtime/experts.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "base/size.h"
#include "block/routing.h"
#include "quant/lwc.h"

/* The linears of one expert, or of the one all tokens share. */
typedef struct {
    const oq_runtime_linear *gate, *up, *down;
    int64_t ffn;
} mlp;

static mlp expert_of(const oq_runtime_block *block, int64_t e)
{
    return (mlp){.gate = OQ_AT(block->of_expert[OQ_GATE], e),
                 .up = block->of_expert[OQ_UP] + e,
                 .down = block->of_expert[OQ_DOWN] + e,
                 .ffn = block->spec.ffn};
}

/* y [rows, H] += weight [rows] mlp(x [rows, H]), row i at token[i] or, with NULL, i. */
static oq_code add_mlp(oq_context *context, const oq_runtime_model *model, const oq_runtime_block *block, mlp m,
                       float *x, const float *weight, const int64_t *token, int64_t rows, float *y)
{
    const int64_t H = block->spec.hidden;
    const bool gated = block->spec.gated;
    const oq_mark mark = oq_arena_mark(context->arena);
    float *up, *gate, *out;
    OQ_NEW(context, up, rows * m.ffn);
    gate = up;
    if (gated) OQ_NEW(context, gate, rows * m.ffn);
    OQ_NEW(context, out, rows * H);
    const oq_linear_output both[] = {{m.up, up}, {m.gate, gate}}, down = {m.down, out};
    const int input = oq_input_of(&block->spec, OQ_UP);
    OQ_TRY(oq_run_linears(context, model, block, input, x, rows, both, gated ? 2 : 1));
    oq_activation_forward(context, block->spec.activation, gate, gated ? up : NULL, gate, rows * m.ffn);
    OQ_TRY(oq_run_linears(context, model, block, OQ_INPUT_DOWN, gate, rows, &down, 1));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < H; i++) y[(token ? token[r] : r) * H + i] += weight[r] * out[r * H + i];
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* The tokens of one expert, gathered. */
static oq_code add_expert(oq_context *context, const oq_runtime_model *model, const oq_runtime_block *block,
                          const oq_routing *r, int64_t e, const float *h, float *y)
{
    const int64_t H = block->spec.hidden, at = r->begin[e], rows = r->begin[e + 1] - at;
    const oq_mark mark = oq_arena_mark(context->arena);
    float *x;
    if (rows == 0) return OQ_OK;
    OQ_NEW(context, x, rows * H);
    for (int64_t i = 0; i < rows; i++) memcpy(x + i * H, h + r->token[at + i] * H, sizeof *x * (size_t)H);
    OQ_TRY(add_mlp(context, model, block, expert_of(block, e), x, r->share + at, r->token + at, rows, y));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

oq_code oq_run_experts(oq_context *context, const oq_runtime_model *model, const oq_runtime_block *block, float *h,
                       int64_t T, float *y)
{
    const oq_experts *experts = &block->spec.experts;
    const oq_runtime_linear *linear = block->linear;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_routing routing;
    float *open = NULL;
    OQ_TRY(oq_routing_create(context, experts, T, &routing));
    OQ_TRY(oq_dense_run(context, model->lanes, &linear[OQ_ROUTER].floats, h, T, routing.probability));
    OQ_TRY(oq_route(context, experts, T, &routing));
    if (experts->shared_ffn) {
        OQ_NEW(context, open, T);
        OQ_TRY(oq_dense_run(context, model->lanes, &linear[OQ_SHARED_ROUTER].floats, h, T, open));
        for (int64_t t = 0; t < T; t++) open[t] = oq_sigmoid(open[t]);
    }
    memset(y, 0, sizeof *y * (size_t)(T * block->spec.hidden));
    for (int64_t e = 0; e < experts->count; e++) OQ_TRY(add_expert(context, model, block, &routing, e, h, y));
    const mlp shared = {linear + OQ_SHARED_GATE, linear + OQ_SHARED_UP, linear + OQ_SHARED_DOWN, experts->shared_ffn};
    if (open) OQ_TRY(add_mlp(context, model, block, shared, h, open, NULL, T, y)); /* last: it may round h */
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

#else
typedef int oq_run_experts_is_float_only;
#endif
