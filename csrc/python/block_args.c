#include "python/block_args.h"

#include "block/input_map.h"

/* ---- fields ---------------------------------------------------------------- */

static const char *const norms[] = {"rms", "layer", NULL}, *const mlps[] = {"plain", "gated", NULL};
static const char *const residuals[] = {"sequential", "parallel", "shared", NULL};
static const char *const activations[] = {"silu", "gelu", "gelu_tanh", "relu", NULL};
const oq_argument oq_spec_fields[] = {
    OQ_FIELD("hidden_size", oq_block_spec, hidden),
    OQ_FIELD("ffn_size", oq_block_spec, ffn),
    OQ_FIELD("num_heads", oq_block_spec, heads),
    OQ_FIELD("num_kv_heads", oq_block_spec, kv_heads),
    OQ_FIELD("head_dim", oq_block_spec, head_dim),
    OQ_FIELD("norm", oq_block_spec, norm, .choices = norms),
    OQ_FIELD("norm_eps", oq_block_spec, norm_eps),
    OQ_FIELD("rope", oq_block_spec, rope),
    OQ_FIELD("mlp", oq_block_spec, gated, .choices = mlps),
    OQ_FIELD("activation", oq_block_spec, activation, .choices = activations),
    OQ_FIELD("rotate_qk", oq_block_spec, rotate_qk, .flags = OQ_OPTIONAL),
    OQ_FIELD("rotate_heads", oq_block_spec, rotate_heads, .flags = OQ_OPTIONAL),
    OQ_FIELD("rotate_down", oq_block_spec, rotate_down, .flags = OQ_OPTIONAL),
    OQ_FIELD("rotary_dim", oq_block_spec, rotary_dim, .flags = OQ_OPTIONAL),
    OQ_FIELD("residual", oq_block_spec, residual, .flags = OQ_OPTIONAL, .choices = residuals),
    OQ_FIELD("head_norms", oq_block_spec, head_norms, .flags = OQ_OPTIONAL),
    OQ_FIELD("post_norms", oq_block_spec, post_norms, .flags = OQ_OPTIONAL),
    OQ_FIELD("attention_scale", oq_block_spec, scores.scale, .flags = OQ_OPTIONAL),
    OQ_FIELD("score_cap", oq_block_spec, scores.cap, .flags = OQ_OPTIONAL),
    OQ_FIELD("window", oq_block_spec, scores.window, .flags = OQ_OPTIONAL),
    OQ_FIELD("alibi", oq_block_spec, scores.alibi, .flags = OQ_OPTIONAL),
    OQ_FIELD("num_experts", oq_block_spec, experts.count, .flags = OQ_OPTIONAL),
    OQ_FIELD("experts_per_token", oq_block_spec, experts.used, .flags = OQ_OPTIONAL),
    OQ_FIELD("normalized_experts", oq_block_spec, experts.normalized, .flags = OQ_OPTIONAL),
    OQ_FIELD("shared_ffn_size", oq_block_spec, experts.shared_ffn, .flags = OQ_OPTIONAL),
    {.name = NULL},
};

#define QUANTIZER(key, field)                                                              \
    OQ_FIELD(key, oq_activation_quantizers, field.bits, .range = "bits", .otherwise = 16), \
        OQ_FIELD("symmetric", oq_activation_quantizers, field.symmetric),                  \
        OQ_FIELD("full_range", oq_activation_quantizers, field.full_range)
const oq_argument oq_activation_fields[] = {
    QUANTIZER("bits", x), QUANTIZER("q_bits", q), QUANTIZER("k_bits", k), QUANTIZER("v_bits", v),
    OQ_FIELD("sink_tokens", oq_activation_quantizers, sink_tokens, .flags = OQ_OPTIONAL, .range = "[0, 64]"),
    {.name = NULL},
};

static const oq_argument weight_fields[] = {
    OQ_FIELD("bits", oq_scheme, quantizer.bits, .range = "bits"),
    OQ_FIELD("symmetric", oq_scheme, quantizer.symmetric),
    OQ_FIELD("scale_bits", oq_scheme, quantizer.scale_bits, .flags = OQ_OPTIONAL, .range = "[0, 11]"),
    OQ_FIELD("group_size", oq_scheme, group_size, .range = "[0, inf)"),
    {.name = NULL},
};
#define LINEAR(name, linear) OQ_FIELDS(name, oq_schemes, of[linear], weight_fields, .flags = OQ_OPTIONAL)
const oq_argument oq_scheme_fields[] = {
    LINEAR("q", OQ_Q),       LINEAR("k", OQ_K),   LINEAR("v", OQ_V),       LINEAR("o", OQ_O),
    LINEAR("gate", OQ_GATE), LINEAR("up", OQ_UP), LINEAR("down", OQ_DOWN), LINEAR("router", OQ_ROUTER),
    LINEAR("shared_gate", OQ_SHARED_GATE),        LINEAR("shared_up", OQ_SHARED_UP),
    LINEAR("shared_down", OQ_SHARED_DOWN),        LINEAR("shared_router", OQ_SHARED_ROUTER),
    {.name = NULL},
};

/* In the order of oq_map_kind. */
static const char *const norm_maps[] = {"none", "diagonal", "", "", "online", NULL};
static const char *const input_maps[] = {"none", "", "", "", "kronecker", NULL};
#define FACTOR(i) OQ_FIELD("input_map", oq_options, map[OQ_SITE_FACTORS + i], .choices = input_maps)
static const char *const vo_maps[] = {"none", "diagonal", "", "", "affine", NULL};
static const char *const qk_maps[] = {"none", "scale", "tied", "rotation", "full", NULL};
static const char *const schedules[] = {"constant", "cosine", NULL};
static const char *const losses[] = {"mse", "token", "relative", NULL};
static const char *const sinks[] = {"kept", "out", NULL};
static const char *const gradients[] = {"float", "int8", NULL};
static const char *const starts[] = {"paper", "search", NULL};
static const char *const roundings[] = {"nearest", "gptq", "learned", NULL};
static const char *const parametrizations[] = {"relative", "absolute", NULL};
static const char *const policies[] = {"project", "reject", "raise", "monitor", NULL};
const oq_argument oq_option_fields[] = {
    OQ_FIELD("w_bits", oq_options, weight.bits, .range = "bits"),
    OQ_FIELD("w_symmetric", oq_options, weight.symmetric),
    OQ_FIELD("scale_bits", oq_options, weight.scale_bits, .flags = OQ_OPTIONAL, .range = "[0, 11]"),
    OQ_FIELD("group_size", oq_options, group_size),
    OQ_FIELDS("linears", oq_options, own, oq_scheme_fields, .flags = OQ_OPTIONAL),
    OQ_FIELD("lwc", oq_options, lwc),
    OQ_FIELD("lac", oq_options, lac),
    OQ_FIELD("start", oq_options, search, .choices = starts),
    OQ_FIELD("rounding", oq_options, rounding, .choices = roundings),
    OQ_FIELD("damping", oq_options, gptq.damping),
    OQ_FIELD("act_order", oq_options, gptq.by_activity),
    OQ_FIELD("true_sequential", oq_options, gptq.sequential),
    OQ_FIELD("shift", oq_options, shift),
    OQ_FIELD("norm_map", oq_options, map[OQ_SITE_NORM1], .choices = norm_maps),
    OQ_FIELD("norm_map", oq_options, map[OQ_SITE_NORM2], .choices = norm_maps),
    OQ_FIELD("vo_map", oq_options, map[OQ_SITE_VO], .choices = vo_maps),
    OQ_FIELD("qk_map", oq_options, map[OQ_SITE_QK], .choices = qk_maps),
    /* True is 1, a diagonal map. */
    {.name = "up_down", .kind = OQ_INT, .at = offsetof(oq_options, map[OQ_SITE_UP_DOWN]), .range = "[0, 1]"},
    FACTOR(0),
    FACTOR(1),
    FACTOR(2),
    FACTOR(3),
    FACTOR(4),
    FACTOR(5),
    FACTOR(6),
    FACTOR(7),
    OQ_FIELD("parametrization", oq_options, parametrization, .choices = parametrizations),
    OQ_FIELD("dominance", oq_options, dominance, .choices = policies),
    OQ_FIELD("margin", oq_options, margin),
    OQ_FIELD("stability", oq_options, stability),
    OQ_FIELD("alpha", oq_options, alpha),
    OQ_FIELD("block", oq_options, block),
    OQ_FIELD("seed", oq_options, seed),
    OQ_FIELD("epochs", oq_options, epochs, .range = "[0, inf)"),
    OQ_FIELD("batch_size", oq_options, batch_size),
    OQ_FIELD("patience", oq_options, patience, .flags = OQ_OPTIONAL),
    OQ_FIELD("lr_lwc", oq_options, lr_lwc),
    OQ_FIELD("lr_let", oq_options, lr_let),
    OQ_FIELD("lr_rounding", oq_options, lr_rounding),
    OQ_FIELD("schedule", oq_options, cosine, .choices = schedules),
    OQ_FIELD("loss", oq_options, loss, .choices = losses),
    OQ_FIELD("sinks", oq_options, without_sinks, .flags = OQ_OPTIONAL, .choices = sinks),
    OQ_FIELD("products", oq_options, products, .choices = oq_products_names),
    OQ_FIELD("gradients", oq_options, byte_gradients, .flags = OQ_OPTIONAL, .choices = gradients),
    OQ_FIELD("shuffle", oq_options, shuffle),
    OQ_FIELD("best_iterate", oq_options, best_iterate),
    OQ_FIELDS("activation", oq_options, activation, oq_activation_fields, .flags = OQ_OPTIONAL),
    {.name = NULL},
};

int oq_check_block(oq_call *call, const oq_block_spec *spec)
{
    oq_context context = {0};
    call->size['H'] = spec->hidden;
    if (oq_check_spec(&context, spec) == OQ_OK) return 0;
    PyErr_SetString(PyExc_ValueError, context.error.message);
    return -1;
}

/* ---- arrays ---------------------------------------------------------------- */

enum { KEY_SIZE = 40 };

/* dict[owner.what], borrowed; NULL where it is absent. */
static PyObject *entry(PyObject *dict, const char *owner, const char *what, char key[static KEY_SIZE])
{
    snprintf(key, KEY_SIZE, "%s.%s", owner, what);
    return PyDict_GetItemString(dict, key);
}

void *oq_take_entry(oq_call *call, PyObject *dict, const char *whole, const char *owner, const char *what, oq_kind kind,
                    const char *shape)
{
    char key[KEY_SIZE];
    PyObject *object = entry(dict, owner, what, key);
    if (!object) PyErr_Format(PyExc_ValueError, "%s \"%s\"", whole, key);
    PyArrayObject *array = object ? oq_take_array(call, object, key, kind, shape) : NULL;
    return array ? oq_data(array) : NULL;
}

/* dict[owner.what]; *to stays NULL when an optional one is absent. */
static int take_tensor(oq_call *call, PyObject *dict, const char *owner, const char *what, bool required,
                       const char *shape, const oq_real **to)
{
    char key[KEY_SIZE];
    if (!required && !entry(dict, owner, what, key)) return 0;
    *to = oq_take_entry(call, dict, "weights lack", owner, what, OQ_REALS, shape);
    return *to ? 0 : -1;
}

int oq_take_tensors(oq_call *call, PyObject *dict, const oq_block_spec *spec, const bool *weights,
                    oq_block_weights *w)
{
    int failed = !PyDict_Check(dict);
    if (failed) PyErr_SetString(PyExc_TypeError, "weights must be a dict of arrays");
    for (int i = 0; !failed && i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(spec, i);
        const char *name = oq_linear_names[i];
        call->size['o'] = shape.out;
        call->size['i'] = shape.in;
        if (oq_has_linear(spec, i))
            failed = ((!weights || weights[i]) &&
                      take_tensor(call, dict, name, "weight", true, "oi", &w->weight[i])) ||
                     take_tensor(call, dict, name, "bias", false, "o", &w->bias[i]);
    }
    for (int i = 0; !failed && i < OQ_NORMS; i++) {
        const char *name = oq_norm_names[i];
        if (!oq_has_norm(spec, i)) continue;
        call->size['i'] = oq_norm_width(spec, i);
        failed = take_tensor(call, dict, name, "weight", true, "i", &w->gain[i]) ||
                 take_tensor(call, dict, name, "bias", false, "i", &w->norm_bias[i]) ||
                 (i < OQ_INPUT_NORMS && take_tensor(call, dict, name, "inverse", false, "HH", &w->map_inverse[i]));
    }
    for (int i = 0; !failed && i < OQ_INPUTS; i++) {
        const char *name = oq_input_names[i];
        oq_size_input(call, spec, i);
        failed = take_tensor(call, dict, name, "left", false, "aa", &w->left[i]) ||
                 take_tensor(call, dict, name, "right", w->left[i] != NULL, "bb", &w->right[i]) ||
                 take_tensor(call, dict, name, "clip", false, "c", &w->clip[i]);
    }
    return failed ? -1 : 0;
}

static int take_codes_of(oq_call *call, PyObject *dict, const char *name, oq_row_codes *to)
{
    static const char lack[] = "codes lack";
    char key[KEY_SIZE];
    if (!entry(dict, name, "codes", key)) return 0;
    to->codes = oq_take_entry(call, dict, lack, name, "codes", OQ_BYTES, "oi");
    if (to->codes) to->zero = oq_take_entry(call, dict, lack, name, "zero_point", OQ_BYTES, "ou");
    if (to->zero) to->scale = oq_take_entry(call, dict, lack, name, "scale", OQ_REALS, "ou");
    return to->scale ? 0 : -1;
}

int oq_take_row_codes(oq_call *call, PyObject *dict, const oq_block_spec *spec, oq_row_codes to[OQ_LINEARS])
{
    if (!dict || dict == Py_None) return 0;
    int failed = !PyDict_Check(dict);
    if (failed) PyErr_SetString(PyExc_TypeError, "codes must be a dict of arrays");
    call->size['u'] = 1;
    for (int i = 0; !failed && i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(spec, i);
        if (!oq_has_linear(spec, i) || oq_is_router(i)) continue;
        call->size['o'] = shape.out;
        call->size['i'] = shape.in;
        failed = take_codes_of(call, dict, oq_linear_names[i], &to[i]);
    }
    return failed ? -1 : 0;
}

void oq_size_input(oq_call *call, const oq_block_spec *spec, int input)
{
    const oq_kronecker size = oq_input_factors(spec, input);
    call->size['a'] = size.a;
    call->size['b'] = size.b;
    call->size['c'] = 2;
}

/* One table [>= T, r / 2]. */
static const oq_real *take_table(oq_call *call, PyObject *object, const char *name, int64_t rotary_dim)
{
    call->size['p'] = -1;
    call->size['f'] = rotary_dim / 2;
    PyArrayObject *table = oq_take_array(call, object, name, OQ_REALS, "pf");
    if (!table) return NULL;
    if (oq_size(call, 'p') >= oq_size(call, 'T')) return oq_data(table);
    PyErr_Format(PyExc_ValueError, "%s: expected at least %lld rows, one a position, got %lld", name,
                 (long long)oq_size(call, 'T'), (long long)oq_size(call, 'p'));
    return NULL;
}

int oq_take_rope(oq_call *call, PyObject *cosine, PyObject *sine, const oq_block_spec *spec, oq_rope *rope)
{
    if (!spec->rope) return 0;
    rope->dims = oq_rotary_dim(spec);
    rope->cos = take_table(call, cosine, "cos", rope->dims);
    rope->sin = rope->cos ? take_table(call, sine, "sin", rope->dims) : NULL;
    return rope->sin ? 0 : -1;
}

static int take_follower(oq_call *call, PyObject *item, oq_followers *to)
{
    static const oq_argument fields = {.name = "spec", .kind = OQ_DICT, .fields = oq_spec_fields};
    const int64_t hidden = oq_size(call, 'H');
    oq_block_spec *spec = &to->spec[to->count];
    if (!PyTuple_Check(item) || PyTuple_Size(item) != 4) {
        PyErr_SetString(PyExc_TypeError, "followers: expected tuples (spec, weights, cos, sin)");
        return -1;
    }
    if (oq_take_scalar(&fields, PyTuple_GetItem(item, 0), "spec", spec) < 0 || oq_check_block(call, spec) < 0)
        return -1;
    if (spec->hidden != hidden) {
        PyErr_Format(PyExc_ValueError, "followers: expected hidden_size %lld, got %lld", (long long)hidden,
                     (long long)spec->hidden);
        return -1;
    }
    if (oq_take_tensors(call, PyTuple_GetItem(item, 1), spec, NULL, &to->weights[to->count]) < 0) return -1;
    return oq_take_rope(call, PyTuple_GetItem(item, 2), PyTuple_GetItem(item, 3), spec, &to->rope[to->count++]);
}

int oq_take_followers(oq_call *call, PyObject *list, oq_followers *to)
{
    to->count = 0;
    if (!list || list == Py_None) return 0;
    if (!PyList_Check(list) || PyList_Size(list) > OQ_MOST_FOLLOWERS) {
        PyErr_Format(PyExc_ValueError, "followers: expected a list of at most %d", OQ_MOST_FOLLOWERS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++)
        if (take_follower(call, PyList_GetItem(list, i), to) < 0) return -1;
    return 0;
}
