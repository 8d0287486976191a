#include "runtime/step.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "block/input_map.h"
#include "block/rotation.h"
#include "math/vector.h"
#include "runtime/attend.h"
#include "runtime/experts.h"

/* Rows below which Ctrl-C is looked for once a step, not once a block: asking costs microseconds. */
enum { FEW_ROWS = 16 };

typedef struct {
    const oq_decoder *decoder;
    const oq_runtime_block *block;
    const oq_cache *cache;
    int64_t position, T;
    oq_norm_stats *stats;        /* [T n] */
    float *h, *mapped, *mlp;     /* [T, H]; mlp: what a parallel MLP adds */
    float *raw;                  /* [T, max(H, n d)]: what a norm behind a linear reads */
    float *q, *k, *v, *attended; /* [T, n d], [T, m d] */
    float *gate, *up;            /* [T, F]; plain: gate is up */
    float *normed;               /* [T, H] what experts read */
} step;

static oq_code create(oq_context *context, step *s)
{
    const oq_block_spec *spec = &s->decoder->model->spec;
    const int64_t T = s->T, d = spec->head_dim;
    const int64_t widest = spec->hidden > spec->heads * d ? spec->hidden : spec->heads * d;
    OQ_NEW(context, s->stats, T * spec->heads);
    OQ_NEW(context, s->h, T * spec->hidden);
    OQ_NEW(context, s->mapped, T * spec->hidden);
    if (spec->head_norms || spec->post_norms) OQ_NEW(context, s->raw, T * widest);
    if (spec->residual != OQ_SEQUENTIAL) OQ_NEW(context, s->mlp, T * spec->hidden);
    OQ_NEW(context, s->q, T * spec->heads * d);
    OQ_NEW(context, s->k, T * spec->kv_heads * d);
    OQ_NEW(context, s->v, T * spec->kv_heads * d);
    OQ_NEW(context, s->attended, T * spec->heads * d);
    if (spec->experts.count) {
        OQ_NEW(context, s->normed, T * spec->hidden);
        return OQ_OK;
    }
    OQ_NEW(context, s->up, T * spec->ffn);
    s->gate = s->up;
    if (spec->gated) OQ_NEW(context, s->gate, T * spec->ffn);
    return OQ_OK;
}

/* One linear and where its output goes. */
typedef struct {
    int which;
    float *y;
} output;

/* *x [T, in] under the Kronecker map of an input, where the block has one. */
static oq_code map_input(oq_context *context, const step *s, int input, float **x)
{
    oq_kronecker map = oq_input_factors(&s->decoder->model->spec, input);
    float *mapped;
    map.left = s->block->left[input];
    map.right = s->block->right[input];
    if (!map.left) return OQ_OK;
    OQ_NEW(context, mapped, s->T * map.a * map.b);
    OQ_TRY(oq_kronecker_forward(context, &map, *x, mapped, s->T));
    *x = mapped;
    return OQ_OK;
}

/* At most three linears of the same x [T, in], which is mapped once; x may be rounded in place. */
static oq_code linears(oq_context *context, const step *s, float *x, const output *outputs, int count)
{
    const oq_mark mark = oq_arena_mark(context->arena);
    const int input = oq_input_of(&s->decoder->model->spec, outputs[0].which);
    oq_linear_output linear[3];
    OQ_TRY(map_input(context, s, input, &x));
    for (int i = 0; i < count; i++)
        linear[i] = (oq_linear_output){&s->block->linear[outputs[i].which], outputs[i].y};
    OQ_TRY(oq_run_linears(context, s->decoder->model, s->block, input, x, s->T, linear, count));
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

/* norm(x), behind the online map where there is one. */
static oq_code normalize(oq_context *context, const step *s, int which, const float *x, float **h)
{
    const oq_block_spec *spec = &s->block->spec;
    const oq_norm_shape shape = {spec->norm, spec->norm_eps, s->T, spec->hidden};
    oq_norm_forward(context, shape, x, s->block->gain[which], s->block->norm_bias[which], s->h, s->stats);
    *h = s->h;
    if (!s->block->map[which].values) return OQ_OK;
    *h = s->mapped;
    return oq_dense_run(context, s->decoder->model->lanes, &s->block->map[which], s->h, s->T, s->mapped);
}

/* A norm behind a linear, in place; x [rows, width] stays where the block has none. */
static void norm_behind(oq_context *context, const step *s, int which, int64_t rows, float *x)
{
    const oq_block_spec *spec = &s->block->spec;
    if (!oq_has_norm(spec, which)) return;
    const oq_norm_shape shape = {spec->norm, spec->norm_eps, rows, oq_norm_width(spec, which)};
    memcpy(s->raw, x, sizeof *x * (size_t)(rows * shape.width));
    oq_norm_forward(context, shape, s->raw, s->block->gain[which], s->block->norm_bias[which], x, s->stats);
}

static void rotate(oq_context *context, const step *s)
{
    const oq_decoder *decoder = s->decoder;
    const oq_block_spec *spec = &s->block->spec;
    const int64_t half = oq_rotary_dim(spec) / 2;
    const int64_t at = (s->block->rope_table * decoder->capacity + s->position) * half;
    if (!spec->rope) return;
    const oq_rope rope = {decoder->rope.cos + at, decoder->rope.sin + at, 2 * half};
    oq_rope_forward(context, rope, s->q, s->T, spec->heads, spec->head_dim);
    oq_rope_forward(context, rope, s->k, s->T, spec->kv_heads, spec->head_dim);
}

/* h [T, H] in: the normed input; s->h: what the attention adds. */
static oq_code attention_half(oq_context *context, const step *s, float *h)
{
    const oq_decoder *decoder = s->decoder;
    const oq_block_spec *spec = &s->block->spec;
    const int64_t T = s->T, d = spec->head_dim, n = spec->heads, m = spec->kv_heads;
    OQ_TRY(linears(context, s, h, (output[]){{OQ_Q, s->q}, {OQ_K, s->k}, {OQ_V, s->v}}, 3));
    norm_behind(context, s, OQ_NORM_Q, T * n, s->q);
    norm_behind(context, s, OQ_NORM_K, T * m, s->k);
    rotate(context, s);
    OQ_TRY(oq_rotate_qk(context, spec, s->q, s->k, T));
    OQ_TRY(oq_round_rows(context, decoder->model->quantizers.q, NULL, s->q, T * n, d));
    OQ_TRY(oq_cache_append(context, &decoder->shape, s->cache, s->position, s->k, s->v, T));
    OQ_TRY(oq_attend(context, decoder->model->lanes, &decoder->shape, s->cache, &spec->scores, n, s->position, s->q,
                     T, s->attended));
    OQ_TRY(oq_rotate_input(context, spec, OQ_O, s->attended, T));
    OQ_TRY(linears(context, s, s->attended, &(output){OQ_O, s->h}, 1));
    norm_behind(context, s, OQ_POST1, T, s->h);
    return OQ_OK;
}

/* h [T, H] in: the normed input; s->h: what the MLP adds. */
static oq_code mlp_half(oq_context *context, const step *s, float *h)
{
    const oq_block_spec *spec = &s->block->spec;
    const int64_t T = s->T;
    const output both[] = {{OQ_UP, s->up}, {OQ_GATE, s->gate}};
    if (spec->experts.count) {
        memcpy(s->normed, h, sizeof *h * (size_t)(T * spec->hidden)); /* h may be s->h */
        return oq_run_experts(context, s->decoder->model, s->block, s->normed, T, s->h);
    }
    OQ_TRY(linears(context, s, h, both, spec->gated ? 2 : 1));
    oq_activation_forward(context, spec->activation, s->gate, spec->gated ? s->up : NULL, s->gate, T * spec->ffn);
    OQ_TRY(oq_rotate_input(context, spec, OQ_DOWN, s->gate, T));
    OQ_TRY(linears(context, s, s->gate, &(output){OQ_DOWN, s->h}, 1));
    norm_behind(context, s, OQ_POST2, T, s->h);
    return OQ_OK;
}

/* x [T, H] through one block, in place. */
static oq_code block(oq_context *context, const step *s, float *x)
{
    const oq_residual residual = s->block->spec.residual;
    const int64_t count = s->T * s->block->spec.hidden;
    float *h;
    if (residual != OQ_SEQUENTIAL) { /* the MLP reads x before the attention is added to it */
        OQ_TRY(normalize(context, s, oq_mlp_norm(&s->block->spec), x, &h));
        OQ_TRY(mlp_half(context, s, h));
        memcpy(s->mlp, s->h, sizeof *h * (size_t)count);
    }
    OQ_TRY(normalize(context, s, OQ_NORM1, x, &h)); /* again where it is shared: linears may round h in place */
    OQ_TRY(attention_half(context, s, h));
    oq_add(x, s->h, count);
    if (residual == OQ_SEQUENTIAL) {
        OQ_TRY(normalize(context, s, OQ_NORM2, x, &h));
        OQ_TRY(mlp_half(context, s, h));
    }
    oq_add(x, residual == OQ_SEQUENTIAL ? s->h : s->mlp, count);
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
        OQ_TRY(block(context, &s, x));
    }
    oq_arena_rewind(context->arena, mark);
    return OQ_OK;
}

#else
typedef int oq_step_is_float_only;
#endif
