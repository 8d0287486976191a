#include "python/block_args.h"

#include <stdio.h>
#include <string.h>

#include "python/fields.h"

int oq_block_args_begin(oq_block_args *args)
{
    memset(args, 0, sizeof *args);
    args->keep = PyList_New(0);
    return args->keep ? 0 : -1;
}

void oq_block_args_end(oq_block_args *args) { Py_XDECREF(args->keep); }

/* ---- dictionaries ------------------------------------------------------- */

static int parse_sizes(PyObject *dict, oq_block_spec *spec)
{
    return oq_field_int(dict, "spec", "hidden_size", &spec->hidden) < 0 ||
                   oq_field_int(dict, "spec", "ffn_size", &spec->ffn) < 0 ||
                   oq_field_int(dict, "spec", "num_heads", &spec->heads) < 0 ||
                   oq_field_int(dict, "spec", "num_kv_heads", &spec->kv_heads) < 0 ||
                   oq_field_int(dict, "spec", "head_dim", &spec->head_dim) < 0
               ? -1
               : 0;
}

int oq_parse_spec(PyObject *dict, oq_block_spec *spec)
{
    static const char *const norms[] = {"rms", "layer", NULL}, *const mlps[] = {"plain", "gated", NULL};
    static const char *const activations[] = {"silu", "gelu", "gelu_tanh", "relu", NULL};
    int norm, mlp, activation;
    if (parse_sizes(dict, spec) < 0 || oq_field_choice(dict, "spec", "norm", norms, &norm) < 0 ||
        oq_field_double(dict, "spec", "norm_eps", &spec->norm_eps) < 0 ||
        oq_field_bool(dict, "spec", "rope", &spec->rope) < 0 ||
        oq_field_choice(dict, "spec", "mlp", mlps, &mlp) < 0 ||
        oq_field_choice(dict, "spec", "activation", activations, &activation) < 0)
        return -1;
    spec->norm = (oq_norm_kind)norm;
    spec->gated = mlp == 1;
    spec->activation = (oq_activation)activation;
    oq_context context = {0};
    if (oq_check_spec(&context, spec) == OQ_OK) return 0;
    PyErr_SetString(PyExc_ValueError, context.error.message);
    return -1;
}

static int parse_bits(PyObject *dict, const char *name, const char *key, int *bits)
{
    int64_t value;
    if (oq_field_int(dict, name, key, &value) < 0) return -1;
    if ((value >= 2 && value <= 8) || (value >= 16 && value <= 64)) {
        *bits = (int)value;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s[\"%s\"] must be 2..8, or 16 for none; got %lld", name, key,
                 (long long)value);
    return -1;
}

int oq_parse_activation(PyObject *dict, oq_activation_quantizers *q)
{
    const char *name = "activation";
    oq_quantizer common = {.bits = 16};
    if (dict != Py_None && (oq_field_bool(dict, name, "symmetric", &common.symmetric) < 0 ||
                            oq_field_bool(dict, name, "full_range", &common.full_range) < 0))
        return -1;
    q->x = q->q = q->k = q->v = common;
    if (dict == Py_None) return 0;
    return parse_bits(dict, name, "bits", &q->x.bits) < 0 || parse_bits(dict, name, "q_bits", &q->q.bits) < 0 ||
                   parse_bits(dict, name, "k_bits", &q->k.bits) < 0 ||
                   parse_bits(dict, name, "v_bits", &q->v.bits) < 0
               ? -1
               : 0;
}

/* ---- options ------------------------------------------------------------ */

static int parse_maps(PyObject *dict, oq_options *o)
{
    static const char *const norm_maps[] = {"none", "diagonal", "online", NULL};
    static const char *const vo_maps[] = {"none", "diagonal", "affine", NULL};
    static const char *const qk_maps[] = {"none", "scale", "tied", "rotation", "full", NULL};
    static const oq_map_kind simple[] = {OQ_MAP_NONE, OQ_MAP_DIAGONAL, OQ_MAP_DENSE};
    static const oq_map_kind paired[] = {OQ_MAP_NONE, OQ_MAP_DIAGONAL, OQ_MAP_TIED, OQ_MAP_ROTATION, OQ_MAP_DENSE};
    int norm, vo, qk;
    bool up_down;
    if (oq_field_choice(dict, "options", "norm_map", norm_maps, &norm) < 0 ||
        oq_field_choice(dict, "options", "vo_map", vo_maps, &vo) < 0 ||
        oq_field_choice(dict, "options", "qk_map", qk_maps, &qk) < 0 ||
        oq_field_bool(dict, "options", "up_down", &up_down) < 0)
        return -1;
    o->map[OQ_SITE_NORM1] = o->map[OQ_SITE_NORM2] = simple[norm];
    o->map[OQ_SITE_VO] = simple[vo];
    o->map[OQ_SITE_QK] = paired[qk];
    o->map[OQ_SITE_UP_DOWN] = up_down ? OQ_MAP_DIAGONAL : OQ_MAP_NONE;
    return 0;
}

static int parse_weight_quantizer(PyObject *dict, oq_options *o)
{
    return parse_bits(dict, "options", "w_bits", &o->weight.bits) < 0 ||
                   oq_field_bool(dict, "options", "w_symmetric", &o->weight.symmetric) < 0 ||
                   oq_field_int(dict, "options", "group_size", &o->group_size) < 0 ||
                   oq_field_bool(dict, "options", "lwc", &o->lwc) < 0 ||
                   oq_field_bool(dict, "options", "shift", &o->shift) < 0
               ? -1
               : 0;
}

static int parse_training(PyObject *dict, oq_options *o)
{
    static const char *const schedules[] = {"constant", "cosine", NULL}, *const losses[] = {"mse", "token", NULL};
    int schedule, loss;
    int64_t seed;
    if (oq_field_int(dict, "options", "block", &o->block) < 0 ||
        oq_field_int(dict, "options", "seed", &seed) < 0 ||
        oq_field_int(dict, "options", "epochs", &o->epochs) < 0 ||
        oq_field_int(dict, "options", "batch_size", &o->batch_size) < 0 ||
        oq_field_double(dict, "options", "lr_lwc", &o->lr_lwc) < 0 ||
        oq_field_double(dict, "options", "lr_let", &o->lr_let) < 0 ||
        oq_field_choice(dict, "options", "schedule", schedules, &schedule) < 0 ||
        oq_field_choice(dict, "options", "loss", losses, &loss) < 0 ||
        oq_field_bool(dict, "options", "shuffle", &o->shuffle) < 0 ||
        oq_field_bool(dict, "options", "best_iterate", &o->best_iterate) < 0)
        return -1;
    if (o->epochs < 0) { /* the trace is allocated before the core checks its options */
        PyErr_Format(PyExc_ValueError, "options[\"epochs\"] must be >= 0, got %lld", (long long)o->epochs);
        return -1;
    }
    o->seed = (uint64_t)seed;
    o->cosine = schedule == 1;
    o->loss = (oq_loss_kind)loss;
    return 0;
}

static int parse_affine(PyObject *dict, oq_options *o)
{
    static const char *const parametrizations[] = {"relative", "absolute", NULL};
    static const char *const policies[] = {"project", "reject", "raise", "monitor", NULL};
    int parametrization, policy;
    if (oq_field_choice(dict, "options", "parametrization", parametrizations, &parametrization) < 0 ||
        oq_field_choice(dict, "options", "dominance", policies, &policy) < 0 ||
        oq_field_double(dict, "options", "margin", &o->margin) < 0 ||
        oq_field_double(dict, "options", "stability", &o->stability) < 0 ||
        oq_field_double(dict, "options", "alpha", &o->alpha) < 0)
        return -1;
    o->parametrization = (oq_parametrization)parametrization;
    o->dominance = (oq_dominance_policy)policy;
    return 0;
}

int oq_parse_options(PyObject *dict, oq_options *options)
{
    memset(options, 0, sizeof *options);
    if (parse_weight_quantizer(dict, options) < 0 || parse_maps(dict, options) < 0 ||
        parse_affine(dict, options) < 0 || parse_training(dict, options) < 0)
        return -1;
    PyObject *activation = PyDict_GetItemString(dict, "activation"); /* borrowed */
    return oq_parse_activation(activation ? activation : Py_None, &options->activation);
}

/* ---- arrays ------------------------------------------------------------- */

/* dict[owner.what] as reals of the given shape, kept alive by args; *to stays NULL when an optional one is absent.
 */
static int take_tensor(PyObject *dict, const char *owner, const char *what, bool required, int ndim,
                       const npy_intp *shape, oq_block_args *args, const oq_real **to)
{
    char key[40];
    snprintf(key, sizeof key, "%s.%s", owner, what);
    PyObject *object = PyDict_GetItemString(dict, key); /* borrowed */
    if (!object) {
        if (required) PyErr_Format(PyExc_ValueError, "weights lack \"%s\"", key);
        return required ? -1 : 0;
    }
    PyArrayObject *array = oq_array_in(object, key, OQ_NPY_REAL, ndim);
    if (!array) return -1;
    int failed = oq_array_expect(array, key, ndim, shape) < 0 || PyList_Append(args->keep, (PyObject *)array) < 0;
    *to = oq_array_reals(array);
    oq_array_release(array);
    return failed ? -1 : 0;
}

int oq_parse_weights(PyObject *dict, oq_block_args *args)
{
    oq_block_weights *w = &args->weights;
    const npy_intp H = args->spec.hidden;
    if (!PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "weights must be a dict of arrays");
        return -1;
    }
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(&args->spec, i);
        const char *name = oq_linear_names[i];
        if (!oq_has_linear(&args->spec, i)) continue;
        if (take_tensor(dict, name, "weight", true, 2, (npy_intp[]){shape.out, shape.in}, args, &w->weight[i]) <
                0 ||
            take_tensor(dict, name, "bias", false, 1, (npy_intp[]){shape.out}, args, &w->bias[i]) < 0)
            return -1;
    }
    for (int i = 0; i < OQ_NORMS; i++) {
        const char *name = oq_norm_names[i];
        if (take_tensor(dict, name, "weight", true, 1, (npy_intp[]){H}, args, &w->gain[i]) < 0 ||
            take_tensor(dict, name, "bias", false, 1, (npy_intp[]){H}, args, &w->norm_bias[i]) < 0 ||
            take_tensor(dict, name, "inverse", false, 2, (npy_intp[]){H, H}, args, &w->map_inverse[i]) < 0)
            return -1;
    }
    return 0;
}

const oq_real *oq_parse_stream(PyObject *object, const char *name, oq_block_args *args)
{
    oq_calibration_data *data = &args->data;
    PyArrayObject *array = oq_array_in(object, name, OQ_NPY_REAL, 3);
    if (!array) return NULL;
    const npy_intp shape[3] = {data->tokens ? data->samples : -1, data->tokens ? data->tokens : -1,
                               args->spec.hidden};
    const oq_real *reals = NULL;
    if (oq_array_expect(array, name, 3, shape) == 0 && PyList_Append(args->keep, (PyObject *)array) == 0) {
        reals = oq_array_reals(array);
        data->samples = PyArray_DIM(array, 0);
        data->tokens = PyArray_DIM(array, 1);
    }
    oq_array_release(array);
    return reals;
}

/* One table [>= T, d / 2]. */
static const oq_real *parse_table(PyObject *object, const char *name, oq_block_args *args)
{
    PyArrayObject *array = oq_array_in(object, name, OQ_NPY_REAL, 2);
    if (!array) return NULL;
    const oq_real *reals = NULL;
    if (PyArray_DIM(array, 0) < args->data.tokens || PyArray_DIM(array, 1) != args->spec.head_dim / 2)
        PyErr_Format(PyExc_ValueError, "%s: expected at least (%lld, %lld), got (%zd, %zd)", name,
                     (long long)args->data.tokens, (long long)(args->spec.head_dim / 2),
                     (Py_ssize_t)PyArray_DIM(array, 0), (Py_ssize_t)PyArray_DIM(array, 1));
    else if (PyList_Append(args->keep, (PyObject *)array) == 0)
        reals = oq_array_reals(array);
    oq_array_release(array);
    return reals;
}

int oq_parse_rope(PyObject *cosine, PyObject *sine, oq_block_args *args)
{
    if (!args->spec.rope) return 0;
    args->data.rope.cos = parse_table(cosine, "cos", args);
    args->data.rope.sin = args->data.rope.cos ? parse_table(sine, "sin", args) : NULL;
    return args->data.rope.sin ? 0 : -1;
}
