/* Running a model: the packed model and a decoder with its cache, each kept in a capsule. */
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "python/block_args.h"
#include "python/topics.h"
#include "quant/fake_quantize.h"
#include "quant/pack.h"
#include "runtime/decoder.h"

#ifndef OQ_DOUBLE

#define MODEL "omniquant._core.model"
#define DECODER "omniquant._core.decoder"

typedef struct {
    oq_runtime_model model;
    PyObject *keep; /* a list of what the model borrows */
} held_model;

typedef struct {
    oq_decoder decoder;
    PyObject *model, *keep; /* owned */
    atomic_flag busy;
} held_decoder;

/* V vocabulary, H hidden, n tokens, s = n - 1; b bytes a row of a matrix, g its scales. */
struct values {
    oq_block_spec spec;
    oq_activation_quantizers activation;
    PyObject *embedding, *lm_head, *kernel, *model, *decoder, *tensors;
    oq_dense matrix[2];
    const float *norm, *norm_bias, *lm_head_bias, *cos, *sin;
    oq_runtime_entry entry;
    double logit_cap;
    const char *kernel_name;
    int64_t layers, index, capacity, length, rope_table;
    unsigned want;
    const int32_t *tokens;
    oq_runtime_source source;
    oq_feed_result result;
    PyArrayObject *answer; /* owned by the call */
    held_model *held_model;
    held_decoder *held_decoder;
    PyObject *capsule; /* a new one */
};

static void free_model(PyObject *capsule)
{
    held_model *held = PyCapsule_GetPointer(capsule, MODEL);
    oq_runtime_destroy(&held->model);
    Py_XDECREF(held->keep);
    oq_free(held);
}

static void free_decoder(PyObject *capsule)
{
    held_decoder *held = PyCapsule_GetPointer(capsule, DECODER);
    oq_decoder_destroy(&held->decoder);
    Py_XDECREF(held->model);
    Py_XDECREF(held->keep);
    oq_free(held);
}

/* Zeroed memory in a capsule that the call owns; -1 with an exception. */
static int new_capsule(oq_call *call, size_t bytes, const char *name, PyCapsule_Destructor destroy, void **held,
                       PyObject **capsule)
{
    *held = oq_malloc(bytes);
    if (!*held) {
        PyErr_NoMemory();
        return -1;
    }
    memset(*held, 0, bytes);
    *capsule = PyCapsule_New(*held, name, destroy);
    if (!*capsule) oq_free(*held);
    if (!*capsule || PyList_Append(call->keep, *capsule) < 0) {
        Py_CLEAR(*capsule);
        return -1;
    }
    Py_DECREF(*capsule); /* the call's list owns it */
    return 0;
}

/* A list of the arrays of a call, for the object made by it; NULL with an exception. */
static PyObject *arrays_of(const oq_call *call)
{
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list && i < PyList_Size(call->keep); i++) {
        PyObject *item = PyList_GetItem(call->keep, i); /* borrowed */
        if (!PyCapsule_CheckExact(item) && PyList_Append(list, item) < 0) Py_CLEAR(list);
    }
    return list;
}

static PyObject *capsule_of(oq_call *call, values *v)
{
    (void)call;
    return Py_NewRef(v->capsule);
}

/* ---- model_create ---------------------------------------------------------- */

/* (kind, values, scales or None), values and scales as bytes -> a matrix [V, H]. */
static int take_matrix(oq_call *call, PyObject *object, const char *name, oq_dense *w)
{
    static const int64_t nibbles[] = {8, 4, 4, 2, 1}; /* of a value, of each kind */
    PyObject *data, *scales;
    int kind;
    const int64_t columns = oq_size(call, 'H');
    if (!PyArg_ParseTuple(object, "iOO", &kind, &data, &scales)) return -1;
    if (kind < 0 || kind > OQ_DENSE_NIBBLES || (kind == OQ_DENSE_NIBBLES && columns % OQ_DENSE_GROUP)) {
        PyErr_Format(PyExc_ValueError, "%s: no kind %d of matrix with %lld columns", name, kind, (long long)columns);
        return -1;
    }
    call->size['b'] = columns * nibbles[kind] / 2;
    call->size['g'] = (columns + OQ_DENSE_GROUP - 1) / OQ_DENSE_GROUP * 2;
    PyArrayObject *array = oq_take_array(call, data, name, OQ_BYTES, "Vb");
    if (!array) return -1;
    *w = (oq_dense){
        .kind = (oq_dense_kind)kind, .out = oq_size(call, 'V'), .in = columns, .values = oq_data(array)};
    if (kind < OQ_DENSE_BYTES) return 0;
    array = oq_take_array(call, scales, name, OQ_BYTES, "Vg");
    if (array) w->scales = oq_data(array);
    return array ? 0 : -1;
}

static int check_block(oq_call *call, values *v) { return oq_check_block(call, &v->spec); }
static int take_embedding(oq_call *call, values *v)
{
    return take_matrix(call, v->embedding, "embedding", &v->matrix[0]);
}
static int take_head(oq_call *call, values *v) { return take_matrix(call, v->lm_head, "lm_head", &v->matrix[1]); }

static int find_kernel(oq_call *call, values *v)
{
    (void)call;
    if (!v->kernel) return 0;
    for (int i = 0; oq_kernel_name(i); i++)
        if (PyUnicode_Check(v->kernel) && PyUnicode_CompareWithASCIIString(v->kernel, oq_kernel_name(i)) == 0)
            v->kernel_name = oq_kernel_name(i);
    if (v->kernel_name) return 0;
    PyErr_Format(PyExc_ValueError, "kernel %R cannot run here", v->kernel);
    return -1;
}

static int make_model(oq_call *call, values *v)
{
    if (new_capsule(call, sizeof *v->held_model, MODEL, free_model, (void **)&v->held_model, &v->capsule) < 0)
        return -1;
    v->held_model->keep = arrays_of(call);
    return v->held_model->keep ? 0 : -1;
}

static const oq_argument model_create_arguments[] = {
    OQ_STRUCT(spec, oq_spec_fields, .then = check_block),
    OQ_STRUCT(activation, oq_activation_fields),
    OQ_SCALAR(embedding, .then = take_embedding),
    OQ_SCALAR(lm_head, .then = take_head),
    OQ_ARRAY(norm, "H"),
    OQ_ARRAY(norm_bias, "H", .flags = OQ_NULLABLE),
    OQ_SCALAR(layers, .range = "[1, inf)"),
    OQ_SCALAR(kernel, .flags = OQ_NULLABLE, .then = find_kernel),
    OQ_FIELD("embedding_scale", values, entry.scale, .flags = OQ_KEYWORD),
    OQ_FIELD("embedding_norm", values, entry.gain, .shape = "H", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_FIELD("embedding_norm_bias", values, entry.bias, .shape = "H", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_FIELD("positions", values, entry.positions, .shape = "PH", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_ARRAY(lm_head_bias, "V", .flags = OQ_NULLABLE | OQ_KEYWORD),
    OQ_SCALAR(logit_cap, .flags = OQ_KEYWORD, .range = "[0, inf)"),
    OQ_DERIVED(make_model),
};

static oq_code model_create_run(oq_call *call, values *v)
{
    oq_runtime_model *m = &v->held_model->model;
    *m = (oq_runtime_model){.spec = v->spec,
                            .quantizers = v->activation,
                            .layers = v->layers,
                            .kernel = v->kernel_name,
                            .embedding = v->matrix[0],
                            .final_gain = v->norm,
                            .final_bias = v->norm_bias,
                            .entry = v->entry,
                            .logit_cap = v->logit_cap};
    m->entry.position_count = v->entry.positions ? oq_size(call, 'P') : 0;
    v->matrix[1].bias = v->lm_head_bias;
    return oq_runtime_create(&call->context, m, &v->matrix[1]);
}

OQ_FUNCTION_WITH(model_create, capsule_of);

/* ---- model_set_block ------------------------------------------------------- */

static int find_model(oq_call *call, values *v)
{
    v->held_model = PyCapsule_GetPointer(v->model, MODEL);
    if (!v->held_model) return -1;
    v->spec = v->held_model->model.spec;
    call->size['H'] = v->spec.hidden;
    return 0;
}

static int take_codes(oq_call *call, values *v, int i)
{
    const oq_linear_shape shape = oq_shape_of(&v->spec, i);
    const oq_scheme scheme = v->source.schemes.of[i];
    const int64_t group = oq_group_within(scheme.group_size, shape.in);
    const char *name = oq_linear_names[i];
    call->size['o'] = shape.out;
    call->size['p'] = oq_packed_width(shape.in, scheme.quantizer.bits);
    call->size['q'] = (shape.in + group - 1) / group;
    static const char lack[] = "the block lacks";
    PyObject *dict = v->tensors;
    v->source.codes[i] = oq_take_entry(call, dict, lack, name, "codes", OQ_BYTES, "op");
    if (v->source.codes[i]) v->source.scales[i] = oq_take_entry(call, dict, lack, name, "scale", OQ_FLOATS, "oq");
    if (v->source.scales[i])
        v->source.zero_points[i] = oq_take_entry(call, dict, lack, name, "zero_point", OQ_BYTES, "oq");
    return v->source.zero_points[i] ? 0 : -1;
}

static int take_block(oq_call *call, values *v)
{
    bool floats[OQ_LINEARS];
    for (int i = 0; i < OQ_LINEARS; i++) {
        const int bits = v->source.schemes.of[i].quantizer.bits;
        floats[i] = oq_is_router(i) || !oq_is_quantized(v->source.schemes.of[i].quantizer);
        if (!oq_has_linear(&v->spec, i) || oq_is_router(i) || bits) continue;
        PyErr_Format(PyExc_ValueError, "linears lack \"%s\"", oq_linear_names[i]);
        return -1;
    }
    v->source.x = v->activation.x;
    v->source.spec = v->spec;
    v->source.rope_table = v->rope_table;
    if (oq_take_tensors(call, v->tensors, &v->spec, floats, &v->source.floats) < 0) return -1;
    for (int i = 0; i < OQ_LINEARS; i++)
        if (oq_has_linear(&v->spec, i) && !floats[i] && take_codes(call, v, i) < 0) return -1;
    return 0;
}

static const oq_argument model_set_block_arguments[] = {
    OQ_SCALAR(model, .then = find_model),
    OQ_SCALAR(index),
    OQ_STRUCT(spec, oq_spec_fields, .then = check_block),
    OQ_SCALAR(rope_table, .range = "[0, inf)"),
    OQ_SCALAR(tensors),
    OQ_FIELDS("linears", values, source.schemes, oq_scheme_fields),
    OQ_STRUCT(activation, oq_activation_fields, .then = take_block),
    OQ_THREADS,
};

static oq_code model_set_block_run(oq_call *call, values *v)
{
    return oq_runtime_set_block(&call->context, &v->held_model->model, v->index, &v->source);
}

OQ_FUNCTION(model_set_block);

/* ---- decoder_create -------------------------------------------------------- */

static int size_decoder(oq_call *call, values *v)
{
    call->size['T'] = v->capacity;
    call->size['f'] = oq_rotary_dim(&v->spec) / 2;
    return 0;
}

static int make_decoder(oq_call *call, values *v)
{
    const oq_rope rope = {v->cos, v->sin, oq_rotary_dim(&v->spec)};
    const int64_t tables = v->cos && v->sin ? oq_size(call, 'R') : 0;
    if (new_capsule(call, sizeof *v->held_decoder, DECODER, free_decoder, (void **)&v->held_decoder, &v->capsule) < 0)
        return -1;
    held_decoder *held = v->held_decoder;
    atomic_flag_clear(&held->busy);
    held->model = Py_NewRef(v->model);
    held->keep = arrays_of(call);
    held->decoder = (oq_decoder){
        .model = &v->held_model->model, .rope = rope, .rope_tables = tables, .capacity = v->capacity};
    return held->keep ? 0 : -1;
}

static const oq_argument decoder_create_arguments[] = {
    OQ_SCALAR(model, .then = find_model),
    OQ_SCALAR(capacity, .range = "[1, 1073741824]", .then = size_decoder),
    OQ_ARRAY(cos, "RTf", .flags = OQ_NULLABLE),
    OQ_ARRAY(sin, "RTf", .flags = OQ_NULLABLE),
    OQ_DERIVED(make_decoder),
};

static oq_code decoder_create_run(oq_call *call, values *v)
{
    return oq_decoder_create(&call->context, &v->held_decoder->decoder);
}

OQ_FUNCTION_WITH(decoder_create, capsule_of);

/* ---- decoder_feed ---------------------------------------------------------- */

static int find_decoder(oq_call *call, values *v)
{
    v->held_decoder = PyCapsule_GetPointer(v->decoder, DECODER);
    if (!v->held_decoder) return -1;
    call->size['V'] = v->held_decoder->decoder.model->embedding.out;
    return 0;
}

static int make_answer(oq_call *call, values *v)
{
    static const char *const shapes[] = {"", "V", "nV", "s"};
    v->result.want = (oq_want)v->want;
    if (v->want == OQ_WANT_NOTHING) return 0;
    call->size['s'] = oq_size(call, 'n') > 0 ? oq_size(call, 'n') - 1 : 0;
    v->answer = oq_make_array(call, v->want == OQ_WANT_NLL ? OQ_DOUBLES : OQ_FLOATS, shapes[v->want]);
    if (!v->answer) return -1;
    if (v->want == OQ_WANT_NLL)
        v->result.nll = oq_data(v->answer);
    else
        v->result.logits = oq_data(v->answer);
    return 0;
}

static const char *const wants[] = {"nothing", "last", "all", "nll", NULL};
static const oq_argument decoder_feed_arguments[] = {
    OQ_SCALAR(decoder, .then = find_decoder),
    OQ_ARRAY(tokens, "n"),
    OQ_SCALAR(want, .choices = wants),
    OQ_THREADS,
    OQ_DERIVED(make_answer),
};

static oq_code decoder_feed_run(oq_call *call, values *v)
{
    held_decoder *held = v->held_decoder;
    if (atomic_flag_test_and_set(&held->busy))
        return oq_fail(&call->context, OQ_INVALID_ARGUMENT, "the decoder is in use by another thread");
    const oq_code code =
        oq_decoder_feed(&call->context, &held->decoder, v->tokens, oq_size(call, 'n'), &v->result);
    atomic_flag_clear(&held->busy);
    return code;
}

static PyObject *answer_of(oq_call *call, values *v)
{
    (void)call;
    return Py_NewRef(v->answer ? (PyObject *)v->answer : Py_None);
}

OQ_FUNCTION_WITH(decoder_feed, answer_of);

/* ---- decoder_rewind -------------------------------------------------------- */

static const oq_argument decoder_rewind_arguments[] = {
    OQ_SCALAR(decoder, .then = find_decoder),
    OQ_SCALAR(length, .range = "[0, inf)"),
};

static oq_code decoder_rewind_run(oq_call *call, values *v)
{
    held_decoder *held = v->held_decoder;
    if (atomic_flag_test_and_set(&held->busy))
        return oq_fail(&call->context, OQ_INVALID_ARGUMENT, "the decoder is in use by another thread");
    const int64_t length = held->decoder.length;
    if (v->length <= length) held->decoder.length = v->length;
    atomic_flag_clear(&held->busy);
    return v->length <= length
               ? OQ_OK
               : oq_fail(&call->context, OQ_INVALID_ARGUMENT, "length: the decoder holds %lld tokens, not %lld",
                         (long long)length, (long long)v->length);
}

OQ_FUNCTION(decoder_rewind);

/* ---- facts ----------------------------------------------------------------- */

static PyObject *model_facts(PyObject *module, PyObject *capsule)
{
    (void)module;
    const held_model *held = PyCapsule_GetPointer(capsule, MODEL);
    if (!held) return NULL;
    const oq_runtime_linear *first = &held->model.blocks[0].linear[OQ_Q];
    return Py_BuildValue("{s:L,s:s,s:s}", "bytes", (long long)held->model.bytes, "lanes", held->model.lanes->name,
                         "kernel", first->packed ? oq_qlinear_kernel(&first->integers) : "float");
}

static PyObject *decoder_facts(PyObject *module, PyObject *capsule)
{
    static const char *const stores[] = {"float32", "float16", "uint8", "uint4"};
    (void)module;
    const held_decoder *held = PyCapsule_GetPointer(capsule, DECODER);
    if (!held) return NULL;
    const oq_decoder *d = &held->decoder;
    return Py_BuildValue("{s:L,s:L,s:n,s:s,s:s}", "capacity", (long long)d->capacity, "length",
                         (long long)d->length, "bytes", (Py_ssize_t)d->bytes, "keys", stores[d->shape.key.store],
                         "values", stores[d->shape.value.store]);
}

PyMethodDef oq_decoder_methods[] = {
    OQ_METHOD(model_create, "A model without its blocks."),
    OQ_METHOD(model_set_block, "Pack one block."),
    {"model_facts", model_facts, METH_O, "What a model runs on."},
    OQ_METHOD(decoder_create, "An empty cache."),
    OQ_METHOD(decoder_feed, "Run tokens behind those the decoder holds."),
    OQ_METHOD(decoder_rewind, "Forget the last tokens."),
    {"decoder_facts", decoder_facts, METH_O, "How keys and values are kept."},
    {NULL, NULL, 0, NULL},
};

#else /* the double build checks gradients; it runs no models */

PyMethodDef oq_decoder_methods[] = {{NULL, NULL, 0, NULL}};

#endif
