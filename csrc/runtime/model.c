#include "runtime/model.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"
#include "block/input_map.h"
#include "block/linear.h"
#include "quant/fake_quantize.h"
#include "quant/lwc.h"
#include "quant/pack.h"
#include "runtime/half.h"

/* ---- the head ----------------------------------------------------------------- */

static oq_code copy_head(oq_context *context, oq_runtime_model *model, const oq_dense *head)
{
    const size_t bytes = (size_t)(head->out * head->in) * (head->kind == OQ_DENSE_FLOAT ? 4 : 2); /* an array's */
    if (!(model->head_memory = oq_malloc(bytes))) return oq_fail_memory(context, bytes, 1);
    memcpy(model->head_memory, head->values, bytes);
    model->head.floats = *head; /* its bias stays borrowed */
    model->head.floats.values = model->head_memory;
    return OQ_OK;
}

/* Integers times scales are a symmetric layer of 8 or 4 bits, its activations as exact as floats. */
static oq_code pack_head(oq_context *context, oq_runtime_model *model, const oq_dense *head)
{
    const int bits = head->kind == OQ_DENSE_BYTES ? 8 : 4;
    const int64_t count = head->out * head->in, groups = (head->in + OQ_DENSE_GROUP - 1) / OQ_DENSE_GROUP;
    const oq_qlinear_spec spec = {.out = head->out,
                                  .in = head->in,
                                  .group = head->in < OQ_DENSE_GROUP ? head->in : OQ_DENSE_GROUP,
                                  .bits = bits,
                                  .symmetric = true,
                                  .bias = head->bias != NULL,
                                  .activation = {.bits = 32}};
    const oq_mark mark = oq_arena_mark(context->arena);
    uint8_t *codes;
    float *scales;
    size_t bytes;
    OQ_NEW(context, codes, count);
    OQ_NEW(context, scales, head->out * groups);
    for (int64_t i = 0; i < count; i++)
        codes[i] = (uint8_t)(oq_dense_code(head, i / head->in, i % head->in) + (1 << (bits - 1)));
    for (int64_t i = 0; i < head->out * groups; i++) scales[i] = oq_float_of_half(head->scales[i]);
    OQ_TRY(oq_qlinear_bytes(context, &spec, &bytes));
    if (!(model->head_memory = oq_malloc(bytes))) return oq_fail_memory(context, bytes, 1);
    const oq_qlinear_source source = {.codes = codes, .scales = scales, .bias = head->bias};
    OQ_TRY(oq_qlinear_pack(context, &spec, &source, model->head_memory, &model->head.integers));
    model->head.packed = true;
    oq_arena_rewind(context->arena, mark);
    return model->kernel ? oq_qlinear_use(context, &model->head.integers, model->kernel) : OQ_OK;
}

/* ---- the model ---------------------------------------------------------------- */

oq_code oq_runtime_create(oq_context *context, oq_runtime_model *model, const oq_dense *head)
{
    static const char *const lanes_of[][2] = {{"reference", "plain"}, {"avx2", "avx2"}};
    const char *lanes = NULL;
    for (size_t i = 0; model->kernel && i < sizeof lanes_of / sizeof *lanes_of; i++)
        if (strcmp(model->kernel, lanes_of[i][0]) == 0) lanes = lanes_of[i][1];
    OQ_TRY(oq_check_spec(context, &model->spec));
    model->lanes = oq_lanes_find(lanes);
    if (!model->lanes) return oq_fail(context, OQ_UNSUPPORTED, "this processor cannot run %s", model->kernel);
    size_t bytes;
    if (!oq_size_mul((size_t)model->layers, sizeof *model->blocks, &bytes) || !(model->blocks = oq_malloc(bytes)))
        return oq_fail_memory(context, (size_t)model->layers, sizeof *model->blocks);
    memset(model->blocks, 0, bytes);
    return head->scales ? pack_head(context, model, head) : copy_head(context, model, head);
}

void oq_runtime_destroy(oq_runtime_model *model)
{
    for (int64_t i = 0; model->blocks && i < model->layers; i++) oq_free(model->blocks[i].own);
    oq_free(model->slots);
    oq_free(model->head_memory);
    oq_free(model->blocks);
    model->blocks = NULL;
}

/* ---- a block's memory: a first pass adds up, a second one places ------------ */

typedef struct {
    oq_context *context;
    oq_runtime_model *model;
    const oq_runtime_source *source;
    oq_runtime_block *block;
    uint8_t *memory; /* NULL in the first pass */
    size_t used;
} builder;

/* *at = count * size bytes of the block's memory, 64-byte aligned; NULL in the first pass. */
static oq_code take(builder *b, size_t count, size_t size, void **at)
{
    size_t bytes;
    *at = OQ_AT(b->memory, b->used);
    if (oq_size_mul(count, size, &bytes) && oq_size_align(bytes, 64, &bytes) &&
        oq_size_add(b->used, bytes, &b->used))
        return OQ_OK;
    return oq_fail_memory(b->context, count, size);
}

/* *to = a copy of count floats; NULL stays NULL. */
static oq_code keep(builder *b, const float *from, int64_t count, const float **to)
{
    void *at;
    *to = NULL;
    if (!from) return OQ_OK;
    OQ_TRY(take(b, (size_t)count, sizeof *from, &at));
    if (at) memcpy(at, from, (size_t)count * sizeof *from);
    *to = at;
    return OQ_OK;
}

static oq_qlinear_spec spec_of(const builder *b, oq_linear_rows rows)
{
    const oq_runtime_source *s = b->source;
    const oq_scheme scheme = s->schemes.of[rows.which];
    const float *clip = s->floats.clip[oq_input_of(&b->model->spec, rows.which)];
    return (oq_qlinear_spec){.out = rows.out,
                             .in = rows.in,
                             .group = oq_group_within(scheme.group_size, rows.in),
                             .bits = scheme.quantizer.bits,
                             .symmetric = scheme.quantizer.symmetric,
                             .bias = s->floats.bias[rows.which] != NULL,
                             .activation = s->x,
                             .clipped = clip != NULL,
                             .keep_max = clip ? oq_sigmoid(clip[0]) : 1,
                             .keep_min = clip ? oq_sigmoid(clip[1]) : 1};
}

static oq_code pack_linear(builder *b, oq_linear_rows rows, oq_runtime_linear *linear)
{
    const oq_runtime_source *s = b->source;
    const oq_qlinear_spec spec = spec_of(b, rows);
    const float *bias = s->floats.bias[rows.which];
    const int64_t grid = rows.first * ((rows.in + spec.group - 1) / spec.group);
    const oq_qlinear_source source = {
        .codes = s->codes[rows.which] + rows.first * oq_packed_width(rows.in, spec.bits),
        .dense = true,
        .scales = s->scales[rows.which] + grid,
        .zero_points = spec.symmetric ? NULL : s->zero_points[rows.which] + grid,
        .bias = OQ_AT(bias, rows.first)};
    size_t bytes;
    void *at;
    OQ_TRY(oq_qlinear_bytes(b->context, &spec, &bytes));
    OQ_TRY(take(b, bytes, 1, &at));
    linear->packed = true;
    if (!at) return OQ_OK;
    OQ_TRY(oq_qlinear_pack(b->context, &spec, &source, at, &linear->integers));
    return b->model->kernel ? oq_qlinear_use(b->context, &linear->integers, b->model->kernel) : OQ_OK;
}

static oq_code place_rows(builder *b, oq_linear_rows rows, oq_runtime_linear *linear)
{
    const oq_block_weights *w = &b->source->floats;
    const float *bias = w->bias[rows.which], *values;
    const bool quantized = oq_is_quantized(b->source->schemes.of[rows.which].quantizer);
    if (quantized && !oq_is_router(rows.which)) return pack_linear(b, rows, linear);
    OQ_TRY(keep(b, w->weight[rows.which] + rows.first * rows.in, rows.out * rows.in, &values));
    linear->floats = (oq_dense){.kind = OQ_DENSE_FLOAT, .out = rows.out, .in = rows.in, .values = values};
    return keep(b, OQ_AT(bias, rows.first), rows.out, &linear->floats.bias);
}

/* A linear, or one of each expert in an array of their own. */
static oq_code place_linear(builder *b, int which)
{
    const oq_block_spec *spec = &b->model->spec;
    const int64_t E = spec->experts.count;
    oq_runtime_linear unused = {0}; /* the first pass has no array yet */
    void *at;
    if (!oq_is_stacked(spec, which))
        return place_rows(b, oq_all_rows(spec, which), &b->block->linear[which]);
    OQ_TRY(take(b, (size_t)E, sizeof unused, &at));
    b->block->of_expert[which] = at;
    for (int64_t e = 0; e < E; e++) {
        oq_runtime_linear *linear = at ? (oq_runtime_linear *)at + e : &unused;
        *linear = (oq_runtime_linear){0};
        OQ_TRY(place_rows(b, oq_rows_of_expert(spec, which, e), linear));
    }
    return OQ_OK;
}

/* y = x A^-1 is a linear whose matrix is the inverse transposed. */
static oq_code place_map(builder *b, const float *inverse, oq_dense *map)
{
    const int64_t H = b->model->spec.hidden;
    void *at;
    *map = (oq_dense){.kind = OQ_DENSE_FLOAT, .out = H, .in = H};
    if (!inverse) return OQ_OK;
    OQ_TRY(take(b, (size_t)(H * H), sizeof(float), &at));
    float *to = at;
    for (int64_t i = 0; to && i < H; i++)
        for (int64_t k = 0; k < H; k++) to[i * H + k] = inverse[k * H + i];
    map->values = to;
    return OQ_OK;
}

static oq_code place_block(builder *b)
{
    const oq_block_weights *w = &b->source->floats;
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(&b->model->spec, i)) OQ_TRY(place_linear(b, i));
    for (int i = 0; i < OQ_NORMS; i++) {
        const int64_t width = oq_norm_width(&b->model->spec, i);
        OQ_TRY(keep(b, w->gain[i], width, &b->block->gain[i]));
        OQ_TRY(keep(b, w->norm_bias[i], width, &b->block->norm_bias[i]));
    }
    for (int i = 0; i < OQ_INPUT_NORMS; i++) OQ_TRY(place_map(b, w->map_inverse[i], &b->block->map[i]));
    for (int i = 0; i < OQ_INPUTS; i++) {
        const oq_kronecker size = oq_input_factors(&b->model->spec, i);
        OQ_TRY(keep(b, w->left[i], size.a * size.a, &b->block->left[i]));
        OQ_TRY(keep(b, w->right[i], size.b * size.b, &b->block->right[i]));
        OQ_TRY(keep(b, w->clip[i], 2, &b->block->clip[i]));
    }
    return OQ_OK;
}

/* Memory for a block: its slot; beyond the size of the first block, which made the slots, memory of its own. */
static oq_code find_memory(builder *b, int64_t index)
{
    oq_runtime_model *model = b->model;
    size_t all;
    if (!model->slots) {
        if (!oq_size_mul(b->used, (size_t)model->layers, &all) || !(model->slots = oq_malloc(all)))
            return oq_fail_memory(b->context, (size_t)model->layers, b->used);
        model->slot = b->used;
    }
    b->memory = (uint8_t *)model->slots + (size_t)index * model->slot;
    if (b->used <= model->slot) return OQ_OK;
    b->memory = b->block->own = oq_malloc(b->used);
    return b->memory ? OQ_OK : oq_fail_memory(b->context, b->used, 1);
}

/* The memory of decoders is that of the model's own spec. */
static bool same_shape(const oq_block_spec *a, const oq_block_spec *b)
{
    return a->hidden == b->hidden && a->ffn == b->ffn && a->heads == b->heads && a->kv_heads == b->kv_heads &&
           a->head_dim == b->head_dim && a->gated == b->gated && a->residual == b->residual &&
           oq_rotary_dim(a) == oq_rotary_dim(b) && a->head_norms == b->head_norms && a->post_norms == b->post_norms &&
           a->experts.count == b->experts.count && a->experts.used == b->experts.used &&
           a->experts.shared_ffn == b->experts.shared_ffn;
}

oq_code oq_runtime_set_block(oq_context *context, oq_runtime_model *model, int64_t index,
                             const oq_runtime_source *source)
{
    if (index < 0 || index >= model->layers || model->blocks[index].set)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "block %lld of %lld cannot be set", (long long)index,
                       (long long)model->layers);
    if (!same_shape(&source->spec, &model->spec) || source->rope_table < 0)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "block %lld: spec: another shape than the model's",
                       (long long)index);
    oq_runtime_block block;
    builder b = {.context = context, .model = model, .source = source, .block = &block};
    memset(&block, 0, sizeof block);
    block.spec = source->spec;
    block.rope_table = source->rope_table;
    block.x = source->x;
    OQ_TRY(place_block(&b));
    OQ_TRY(find_memory(&b, index));
    b.used = 0;
    const oq_code code = place_block(&b);
    if (code != OQ_OK) {
        oq_free(block.own);
        return code;
    }
    block.set = true;
    model->blocks[index] = block;
    model->bytes += (int64_t)b.used;
    return OQ_OK;
}

#else
typedef int oq_runtime_model_is_float_only;
#endif
