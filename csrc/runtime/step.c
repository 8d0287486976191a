#include "runtime/step.h"

#ifndef OQ_DOUBLE

#include "block/act_quant.h"
#include "block/rotation.h"
#include "math/vector.h"
#include "runtime/attend.h"

/* Rows below which Ctrl-C is looked for once a step, not once a block: asking costs microseconds. */
enum { FEW_ROWS = 16 };

typedef struct {
    const oq_decoder *decoder;
    const oq_runtime_block *block;
    const oq_cache *cache;
    int64_t position, T;
    oq_norm_stats *stats;        /* [T] */
    float *h, *mapped;           /* [T, H] */
    float *q, *k, *v, *attended; /* [T, n d], [T, m d] */
    float *gate, *up;            /* [T, F]; plain: gate is up */
} step;

static oq_code create(oq_context *context, step *s)
{
    const oq_block_spec *spec = &s->decoder->model->spec;
    const int64_t T = s->T, d = spec->head_dim;
    OQ_NEW(context, s->stats, T);
    OQ_NEW(context, s->h, T * spec->hidden);
    OQ_NEW(context, s->mapped, T * spec->hidden);
    OQ_NEW(context, s->q, T * spec->heads * d);
    OQ_NEW(context, s->k, T * spec->kv_heads * d);
    OQ_NEW(context, s->v, T * spec->kv_heads * d);
    OQ_NEW(context, s->attended, T * spec->heads * d);
    OQ_NEW(context, s->up, T * spec->ffn);
    s->gate = s->up;
    if (spec->gated) OQ_NEW(context, s->gate, T * spec->ffn);
    return OQ_OK;
}

static oq_code fake_quantize(oq_context *context, oq_quantizer quantizer, float *x, int64_t rows, int64_t width)
{
    if (!oq_is_quantized(quantizer)) return OQ_OK;
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_range *ranges; /* for a backward pass, which there is none of */
    OQ_NEW(context, ranges, rows);
    OQ_TRY(oq_act_quant_forward(context, quantizer, x, x, ranges, rows, width));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* One linear and where its output goes. */
typedef struct {
    int which;
    float *y;
} output;

/* Several linears of the same x [T, in], which is quantized once; x may be rounded in place. */
static oq_code linears(oq_context *context, const step *s, float *x, const output *outputs, int count)
{
    const oq_runtime_model *model = s->decoder->model;
    const oq_runtime_linear *first = &s->block->linear[outputs[0].which];
    const oq_mark mark = oq_arena_mark(context->arena);
    oq_activations shared = {0};
    if (first->packed)
        OQ_TRY(oq_qlinear_quantize(context, &first->integers, x, s->T, &shared));
    else
        OQ_TRY(fake_quantize(context, model->quantizers.x, x, s->T, first->floats.in));
    for (int i = 0; i < count; i++) {
        const oq_runtime_linear *linear = &s->block->linear[outputs[i].which];
        if (linear->packed)
            OQ_TRY(oq_qlinear_apply(context, &linear->integers, &shared, outputs[i].y));
        else
            OQ_TRY(oq_dense_run(context, model->lanes, &linear->floats, x, s->T, outputs[i].y));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* norm(x), behind the online map where there is one. */
static oq_code normalize(oq_context *context, const step *s, int which, const float *x, float **h)
{
    const oq_block_spec *spec = &s->decoder->model->spec;
    const oq_norm_shape shape = {spec->norm, spec->norm_eps, s->T, spec->hidden};
    oq_norm_forward(context, shape, x, s->block->gain[which], s->block->norm_bias[which], s->h, s->stats);
    *h = s->h;
    if (!s->block->map[which].values) return OQ_OK;
    *h = s->mapped;
    return oq_dense_run(context, s->decoder->model->lanes, &s->block->map[which], s->h, s->T, s->mapped);
}

static oq_code attention_half(oq_context *context, const step *s, float *x)
{
    const oq_decoder *decoder = s->decoder;
    const oq_block_spec *spec = &decoder->model->spec;
    const int64_t T = s->T, d = spec->head_dim, n = spec->heads, m = spec->kv_heads, at = s->position * (d / 2);
    float *h;
    OQ_TRY(normalize(context, s, OQ_NORM1, x, &h));
    OQ_TRY(linears(context, s, h, (output[]){{OQ_Q, s->q}, {OQ_K, s->k}, {OQ_V, s->v}}, 3));
    if (spec->rope) {
        const oq_rope rope = {decoder->rope.cos + at, decoder->rope.sin + at};
        oq_rope_forward(context, rope, s->q, T, n, d);
        oq_rope_forward(context, rope, s->k, T, m, d);
    }
    OQ_TRY(oq_rotate_qk(context, spec, s->q, s->k, T));
    OQ_TRY(fake_quantize(context, decoder->model->quantizers.q, s->q, T * n, d));
    OQ_TRY(oq_cache_append(context, &decoder->shape, s->cache, s->position, s->k, s->v, T));
    OQ_TRY(oq_attend(context, decoder->model->lanes, &decoder->shape, s->cache, n, s->position, s->q, T,
                     s->attended));
    OQ_TRY(oq_rotate_input(context, spec, OQ_O, s->attended, T));
    OQ_TRY(linears(context, s, s->attended, &(output){OQ_O, s->h}, 1));
    oq_add(x, s->h, T * spec->hidden);
    return OQ_OK;
}

static oq_code mlp_half(oq_context *context, const step *s, float *x)
{
    const oq_block_spec *spec = &s->decoder->model->spec;
    const int64_t T = s->T;
    float *h;
    OQ_TRY(normalize(context, s, OQ_NORM2, x, &h));
    const output both[] = {{OQ_UP, s->up}, {OQ_GATE, s->gate}};
    OQ_TRY(linears(context, s, h, both, spec->gated ? 2 : 1));
    oq_activation_forward(context, spec->activation, s->gate, spec->gated ? s->up : NULL, s->gate, T * spec->ffn);
    OQ_TRY(oq_rotate_input(context, spec, OQ_DOWN, s->gate, T));
    OQ_TRY(linears(context, s, s->gate, &(output){OQ_DOWN, s->h}, 1));
    oq_add(x, s->h, T * spec->hidden);
    return OQ_OK;
}

oq_code oq_step(oq_context *context, const oq_decoder *decoder, int64_t position, int64_t tokens, float *x)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    step s = {.decoder = decoder, .position = position, .T = tokens};
    OQ_TRY(create(context, &s));
    for (int64_t i = 0; i < decoder->model->layers; i++) {
        if (i == 0 || tokens > FEW_ROWS) OQ_TRY(oq_check_cancel(context));
        s.block = &decoder->model->blocks[i];
        s.cache = &decoder->layers[i];
        OQ_TRY(attention_half(context, &s, x));
        OQ_TRY(mlp_half(context, &s, x));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

#else
typedef int oq_step_is_float_only;
#endif
