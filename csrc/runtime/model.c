#include "runtime/model.h"

#ifndef OQ_DOUBLE

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

oq_code oq_runtime_create(oq_context *context, oq_runtime_model *model)
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
    return OQ_OK;
}

void oq_runtime_destroy(oq_runtime_model *model)
{
    for (int64_t i = 0; model->blocks && i < model->layers; i++) oq_free(model->blocks[i].memory);
    oq_free(model->blocks);
    model->blocks = NULL;
}

/* ---- a block's memory: a first pass adds up, a second one places ------------ */

typedef struct {
    oq_context *context;
    const oq_runtime_model *model;
    const oq_runtime_source *source;
    oq_runtime_block *block;
    uint8_t *memory; /* NULL in the first pass */
    size_t used;
} builder;

/* *at = count * size bytes of the block's memory, 64-byte aligned; NULL in the first pass. */
static oq_code take(builder *b, size_t count, size_t size, void **at)
{
    size_t bytes;
    *at = b->memory ? b->memory + b->used : NULL;
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

static oq_qlinear_spec spec_of(const builder *b, int which)
{
    const oq_linear_shape shape = oq_shape_of(&b->model->spec, which);
    const oq_runtime_source *s = b->source;
    const int64_t group = s->group > 0 && s->group < shape.in ? s->group : shape.in;
    return (oq_qlinear_spec){.out = shape.out,
                             .in = shape.in,
                             .group = group,
                             .bits = s->bits,
                             .symmetric = s->symmetric,
                             .bias = s->floats.bias[which] != NULL,
                             .activation = b->model->quantizers.x};
}

static oq_code pack_linear(builder *b, int which, oq_runtime_linear *linear)
{
    const oq_runtime_source *s = b->source;
    const oq_qlinear_spec spec = spec_of(b, which);
    const oq_qlinear_source source = {.codes = s->codes[which],
                                      .dense = true,
                                      .scales = s->scales[which],
                                      .zero_points = s->symmetric ? NULL : s->zero_points[which],
                                      .bias = s->floats.bias[which]};
    size_t bytes;
    void *at;
    OQ_TRY(oq_qlinear_bytes(b->context, &spec, &bytes));
    OQ_TRY(take(b, bytes, 1, &at));
    linear->packed = true;
    if (!at) return OQ_OK;
    OQ_TRY(oq_qlinear_pack(b->context, &spec, &source, at, &linear->integers));
    return b->model->kernel ? oq_qlinear_use(b->context, &linear->integers, b->model->kernel) : OQ_OK;
}

static oq_code place_linear(builder *b, int which)
{
    oq_runtime_linear *linear = &b->block->linear[which];
    const oq_linear_shape shape = oq_shape_of(&b->model->spec, which);
    if (b->source->bits < 16) return pack_linear(b, which, linear);
    const float *values;
    OQ_TRY(keep(b, b->source->floats.weight[which], shape.out * shape.in, &values));
    linear->floats = (oq_dense){.kind = OQ_DENSE_FLOAT, .out = shape.out, .in = shape.in, .values = values};
    return keep(b, b->source->floats.bias[which], shape.out, &linear->floats.bias);
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
    const int64_t H = b->model->spec.hidden;
    const oq_block_weights *w = &b->source->floats;
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(&b->model->spec, i)) OQ_TRY(place_linear(b, i));
    for (int i = 0; i < OQ_NORMS; i++) {
        OQ_TRY(keep(b, w->gain[i], H, &b->block->gain[i]));
        OQ_TRY(keep(b, w->norm_bias[i], H, &b->block->norm_bias[i]));
        OQ_TRY(place_map(b, w->map_inverse[i], &b->block->map[i]));
    }
    return OQ_OK;
}

oq_code oq_runtime_set_block(oq_context *context, oq_runtime_model *model, int64_t index,
                             const oq_runtime_source *source)
{
    if (index < 0 || index >= model->layers || model->blocks[index].memory)
        return oq_fail(context, OQ_INVALID_ARGUMENT, "block %lld of %lld cannot be set", (long long)index,
                       (long long)model->layers);
    oq_runtime_block block;
    builder b = {.context = context, .model = model, .source = source, .block = &block};
    memset(&block, 0, sizeof block);
    OQ_TRY(place_block(&b));
    const size_t bytes = b.used;
    if (!(b.memory = oq_malloc(bytes))) return oq_fail_memory(context, bytes, 1);
    b.used = 0;
    const oq_code code = place_block(&b);
    if (code != OQ_OK) {
        oq_free(b.memory);
        return code;
    }
    block.memory = b.memory;
    model->blocks[index] = block;
    model->bytes += (int64_t)bytes;
    return OQ_OK;
}

#else
typedef int oq_runtime_model_is_float_only;
#endif
