/* One transformer block: forward and backward, calibrated, folded, and the loss of its learnables. */
#include <string.h>

#include "block/linear.h"
#include "calibrate/error_feedback.h"
#include "calibrate/session.h"
#include "python/block_args.h"
#include "python/topics.h"
#include "python/training.h"
#include "quant/ste_tape.h"

/* N windows of T tokens, S texts in each, H hidden; e epochs, t numbers in all learnables. */
struct values {
    oq_block_spec spec;
    PyObject *weights, *codes, *cos, *sin, *learnables, *on_step, *on_epoch, *on_target, *ahead;
    oq_row_codes row_codes[OQ_LINEARS];
    oq_followers followers;
    oq_block_weights tensors;
    oq_rope rope;
    oq_activation_quantizers activation;
    oq_options options;
    const oq_real *x, *dy, *x_fp, *x_q, *targets, *aug_targets, *goals;
    const int32_t *lengths, *shared;
    int64_t epoch;
    oq_learnables list;
    oq_real *y, *dx, *theta, *dtheta;
    oq_block_gradients gradients;
    PyObject *weight_gradients; /* owned by the call */
    double loss, *trace;
    int32_t *expert_tokens;
    bool mapped, in_parts, bfloat16, byte_gradients;
    PyObject *folded_tensors; /* owned by the call */
    oq_folded folded;
    oq_calibration_result result;
};

/* ---- what the lines of the tables do --------------------------------------- */

static int check_block(oq_call *call, values *v) { return oq_check_block(call, &v->spec); }

static int take_weights(oq_call *call, values *v)
{
    return oq_take_tensors(call, v->weights, &v->spec, NULL, &v->tensors);
}

static int take_codes(oq_call *call, values *v)
{
    return oq_take_row_codes(call, v->codes, &v->spec, v->row_codes);
}

static int take_rope(oq_call *call, values *v) { return oq_take_rope(call, v->cos, v->sin, &v->spec, &v->rope); }

/* A copy made on the way in is no mapping: dropping its pages would lose it. */
static int check_mapped(oq_call *call, values *v)
{
    static const char *const streams[] = {"x_fp", "x_q", "targets", "aug_targets", "goals"};
    for (size_t i = 0; v->mapped && i < OQ_COUNT(streams); i++) {
        PyArrayObject *array = oq_made_array(call, streams[i]);
        if (!array || !(PyArray_FLAGS(array) & (NPY_ARRAY_OWNDATA | NPY_ARRAY_WRITEABLE))) continue;
        PyErr_Format(PyExc_ValueError, "%s: no read-only view of a mapped file", streams[i]);
        return -1;
    }
    return 0;
}

static int take_followers(oq_call *call, values *v)
{
    if (oq_take_followers(call, v->ahead, &v->followers) < 0) return -1;
    if ((v->goals != NULL) == (v->followers.count > 0)) return 0;
    PyErr_SetString(PyExc_ValueError, "followers and goals go together");
    return -1;
}

static int list_learnables(oq_call *call, values *v)
{
    oq_learnables_list(&v->spec, &v->options, &v->tensors, &v->list);
    call->size['t'] = v->list.total;
    call->size['e'] = v->options.epochs;
    call->size['x'] = v->spec.experts.count;
    return 0;
}

static int take_learnables(oq_call *call, values *v)
{
    return oq_learnables_from_dict(call, &v->list, v->learnables, v->theta);
}

static int make_linear(oq_call *call, values *v, int i)
{
    const oq_linear_shape shape = oq_shape_of(&v->spec, i);
    const oq_groups groups = oq_weight_groups(&v->spec, &v->options, i);
    const bool quantized = oq_quantizes(&v->options, i);
    const oq_tensor tensors[] = {
        {"bias", v->tensors.bias[i], OQ_REALS, "o", &v->folded.bias[i]},
        {"weight", !quantized, OQ_REALS, "oi", &v->folded.weight[i]},
        {"codes", quantized, OQ_BYTES, "oi", &v->folded.codes[i]},
        {"scale", quantized, OQ_REALS, "og", &v->folded.scale[i]},
        {"zero_point", quantized, OQ_BYTES, "og", &v->folded.zero_point[i]},
    };
    call->size['o'] = shape.out;
    call->size['i'] = shape.in;
    call->size['g'] = oq_groups_per_row(&groups);
    return oq_put_tensors(call, v->folded_tensors, oq_linear_names[i], tensors, OQ_COUNT(tensors));
}

static int make_norm(oq_call *call, values *v, int i)
{
    const int site = oq_site_of_norm(i);
    const bool online = i < OQ_INPUT_NORMS && oq_map_at(&v->spec, &v->options, site) == OQ_MAP_DENSE;
    const oq_tensor tensors[] = {
        {"weight", true, OQ_REALS, "i", &v->folded.gain[i]},
        {"bias", v->tensors.norm_bias[i], OQ_REALS, "i", &v->folded.norm_bias[i]},
        {"inverse", online, OQ_REALS, "HH", online ? &v->folded.map_inverse[i] : NULL},
    };
    call->size['i'] = oq_norm_width(&v->spec, i);
    return oq_put_tensors(call, v->folded_tensors, oq_norm_names[i], tensors, OQ_COUNT(tensors));
}

static int make_input(oq_call *call, values *v, int i)
{
    const bool mapped = v->options.map[OQ_SITE_FACTORS] != OQ_MAP_NONE;
    const oq_tensor tensors[] = {
        {"left", mapped, OQ_REALS, "aa", &v->folded.left[i]},
        {"right", mapped, OQ_REALS, "bb", &v->folded.right[i]},
        {"clip", v->list.lac[i] >= 0, OQ_REALS, "c", &v->folded.clip[i]},
    };
    oq_size_input(call, &v->spec, i);
    return oq_put_tensors(call, v->folded_tensors, oq_input_names[i], tensors, OQ_COUNT(tensors));
}

static int make_folded(oq_call *call, values *v)
{
    v->folded_tensors = oq_new_dict(call);
    int failed = !v->folded_tensors;
    for (int i = 0; !failed && i < OQ_LINEARS; i++)
        failed = oq_has_linear(&v->spec, i) && make_linear(call, v, i) < 0;
    for (int i = 0; !failed && i < OQ_NORMS; i++) failed = oq_has_norm(&v->spec, i) && make_norm(call, v, i) < 0;
    for (int i = 0; !failed && i < OQ_INPUTS; i++) failed = make_input(call, v, i);
    return failed ? -1 : 0;
}

static oq_calibration_data data_of(const oq_call *call, const values *v)
{
    return (oq_calibration_data){.samples = oq_size(call, 'N'),
                                 .tokens = oq_size(call, 'T'),
                                 .x_fp = v->x_fp,
                                 .x_q = v->x_q,
                                 .target = v->targets,
                                 .aug_target = v->aug_targets,
                                 .followers = &v->followers,
                                 .goal = v->goals,
                                 .rope = v->rope,
                                 .mapped = v->mapped};
}

#define BLOCK OQ_STRUCT(spec, oq_spec_fields, .then = check_block), OQ_SCALAR(weights, .then = take_weights)
#define ROPE OQ_SCALAR(cos), OQ_SCALAR(sin, .then = take_rope)
#define DATA                                                               \
    OQ_ARRAY(x_fp, "NTH"), OQ_ARRAY(x_q, "NTH"), OQ_ARRAY(targets, "NTH"), \
        OQ_ARRAY(aug_targets, "NTH", .flags = OQ_NULLABLE), ROPE
#define AHEAD                                   \
    OQ_ARRAY(goals, "NTH", .flags = OQ_KEYWORD), \
        {.name = "followers", OQ_LINE(values, ahead), .flags = OQ_KEYWORD, .then = take_followers}
#define OPTIONS OQ_STRUCT(options, oq_option_fields, .then = list_learnables), OQ_RESULT(theta, "t")

/* ---- block_forward --------------------------------------------------------- */

static const oq_argument block_forward_arguments[] = {
    BLOCK,
    OQ_ARRAY(x, "NTH"),
    ROPE,
    OQ_STRUCT(activation, oq_activation_fields, .flags = OQ_KEYWORD),
    OQ_ARRAY(lengths, "S", .flags = OQ_KEYWORD),
    OQ_ARRAY(shared, "S", .flags = OQ_KEYWORD),
    OQ_SCALAR(in_parts, .flags = OQ_KEYWORD),
    OQ_SCALAR(bfloat16, .flags = OQ_KEYWORD),
    OQ_SCALAR(codes, .flags = OQ_KEYWORD, .then = take_codes),
    OQ_THREADS,
    OQ_RESULT(y, "NTH"),
};

/* Where activations are codes too, products of such linears are of integers; whether there are any. */
static oq_code forms_of_codes(oq_context *context, values *v, bool *integer)
{
    const oq_quantizer byte = {.bits = 8, .symmetric = true};
    for (int i = 0; i < OQ_LINEARS; i++) {
        const oq_linear_shape shape = oq_shape_of(&v->spec, i);
        if (!v->row_codes[i].codes || !oq_has_integer_product(v->activation.x, byte, shape.in)) continue;
        OQ_TRY(oq_forms_of_codes(context, &v->row_codes[i], shape.out, shape.in, &v->tensors.forms[i]));
        *integer |= v->tensors.forms[i].sum != NULL;
    }
    return OQ_OK;
}

static oq_code block_forward_run(oq_call *call, values *v)
{
    oq_block_run run = {.spec = &v->spec,
                        .quantizers = &v->activation,
                        .rope = v->rope,
                        .tokens = oq_size(call, 'T'),
                        .bf16 = v->bfloat16,
                        .lengths = v->lengths,
                        .shared = v->shared,
                        .texts = oq_size(call, 'S')};
    call->context.in_parts = v->in_parts;
    OQ_TRY(forms_of_codes(&call->context, v, &run.integer));
    if (run.bf16) OQ_TRY(oq_weights_to_bf16(&call->context, &v->spec, &v->tensors));
    return oq_block_forward_windows(&call->context, &run, &v->tensors, v->x, v->y, oq_size(call, 'N'));
}

OQ_FUNCTION(block_forward);

/* ---- block_backward -------------------------------------------------------- */

static int make_gradients(oq_call *call, values *v)
{
    v->weight_gradients = oq_new_dict(call);
    int failed = !v->weight_gradients;
    for (int i = 0; !failed && i < OQ_LINEARS; i++) {
        if (!oq_has_linear(&v->spec, i) || oq_is_router(i)) continue;
        const oq_linear_shape shape = oq_shape_of(&v->spec, i);
        const oq_tensor weight = {"weight", true, OQ_REALS, "oi", &v->gradients.weight[i]};
        call->size['o'] = shape.out;
        call->size['i'] = shape.in;
        failed = oq_put_tensors(call, v->weight_gradients, oq_linear_names[i], &weight, 1) < 0;
    }
    for (int i = 0; !failed && i < OQ_INPUT_NORMS; i++) {
        if (!oq_has_norm(&v->spec, i)) continue;
        const oq_tensor gain = {"weight", true, OQ_REALS, "i", &v->gradients.gain[i]};
        call->size['i'] = oq_norm_width(&v->spec, i);
        failed = oq_put_tensors(call, v->weight_gradients, oq_norm_names[i], &gain, 1) < 0;
    }
    return failed ? -1 : 0;
}

static const oq_argument block_backward_arguments[] = {
    BLOCK,
    OQ_ARRAY(x, "TH"),
    OQ_ARRAY(dy, "TH"),
    ROPE,
    OQ_STRUCT(activation, oq_activation_fields, .flags = OQ_KEYWORD),
    OQ_SCALAR(bfloat16, .flags = OQ_KEYWORD),
    OQ_SCALAR(byte_gradients, .flags = OQ_KEYWORD),
    OQ_THREADS,
    OQ_RESULT(dx, "TH"),
    OQ_DERIVED(make_gradients),
};

/* What the forward pass kept is made again: a model's blocks would not all fit. */
static oq_code block_backward_run(oq_call *call, values *v)
{
    oq_context *context = &call->context;
    const oq_block_run run = {.spec = &v->spec,
                              .quantizers = &v->activation,
                              .rope = v->rope,
                              .tokens = oq_size(call, 'T'),
                              .bf16 = v->bfloat16,
                              .maps = oq_has_maps(&v->tensors)};
    oq_saved saved;
    oq_real *y;
    if (run.bf16) OQ_TRY(oq_weights_to_bf16(context, &v->spec, &v->tensors));
    if (v->byte_gradients) oq_weights_take_byte_gradients(&run, &v->tensors);
    OQ_TRY(oq_saved_create(context, &run, &saved));
    OQ_NEW(context, y, run.tokens * v->spec.hidden);
    OQ_TRY(oq_block_forward(context, &run, &v->tensors, v->x, &saved, y));
    v->gradients.fresh = true; /* gains are added to all the same */
    v->gradients.x = v->dx;
    for (int i = 0; i < OQ_INPUT_NORMS; i++)
        if (v->gradients.gain[i])
            memset(v->gradients.gain[i], 0, (size_t)oq_norm_width(&v->spec, i) * sizeof(oq_real));
    return oq_block_backward(context, &run, &v->tensors, &saved, v->dy, &v->gradients);
}

static PyObject *input_and_weight_gradients(oq_call *call, values *v)
{
    return Py_BuildValue("OO", oq_made_array(call, "dx"), v->weight_gradients);
}

OQ_FUNCTION_WITH(block_backward, input_and_weight_gradients);

/* ---- calibrate_block ------------------------------------------------------- */

static const oq_argument calibrate_block_arguments[] = {
    BLOCK,
    DATA,
    OPTIONS,
    OQ_SCALAR(on_step, .flags = OQ_KEYWORD),
    OQ_SCALAR(on_epoch, .flags = OQ_KEYWORD),
    OQ_SCALAR(on_target, .flags = OQ_KEYWORD),
    AHEAD,
    OQ_SCALAR(mapped, .flags = OQ_KEYWORD, .then = check_mapped),
    OQ_THREADS,
    OQ_RESULT(trace, "e"),
    OQ_RESULT(expert_tokens, "x"),
    OQ_DERIVED(make_folded),
};

static oq_code calibrate_block_run(oq_call *call, values *v)
{
    oq_context *context = &call->context;
    oq_calibration_data data = data_of(call, v);
    oq_listener listener = {v->on_step, v->on_epoch, v->on_target, &v->list, data.tokens, v->spec.hidden};
    data.on_target = oq_python_target_hook(&listener);
    data.user = &listener;
    const oq_hooks hooks = oq_python_hooks(&listener);
    const oq_mark mark = oq_arena_mark(context->arena);
    v->result = (oq_calibration_result){.theta = v->theta, .trace = v->trace};
    if (v->spec.experts.count) v->result.expert_tokens = v->expert_tokens;
    for (int64_t e = 0; e < v->spec.experts.count; e++) v->expert_tokens[e] = 0;
    OQ_TRY(oq_calibrate_block(context, &v->spec, &v->tensors, &v->options, &data, &hooks, &v->result));
    oq_arena_rewind(context->arena, mark);
    OQ_TRY(oq_fold_block(context, &v->spec, &v->tensors, &v->options, v->theta, &v->folded));
    if (v->options.rounding != OQ_ROUNDING_GPTQ) return OQ_OK;
    oq_arena_rewind(context->arena, mark);
    return oq_error_feedback(context, &v->spec, &v->tensors, &v->options, &data, &v->folded, &v->result);
}

static PyObject *report_of(oq_call *call, values *v)
{
    PyObject *learnables = oq_learnables_to_dict(call, &v->list, v->theta);
    PyObject *report = oq_training_report(call, &v->result, oq_site_names, learnables, v->folded_tensors);
    PyObject *sinks = PyLong_FromLongLong(v->result.sinks);
    if (report && (!sinks || PyDict_SetItemString(report, "sinks", sinks) < 0 ||
                   PyDict_SetItemString(report, "expert_tokens", (PyObject *)oq_made_array(call, "expert_tokens")) < 0))
        Py_CLEAR(report);
    Py_XDECREF(sinks);
    return report;
}

OQ_FUNCTION_WITH(calibrate_block, report_of);

/* ---- fold_block ------------------------------------------------------------ */

static const oq_argument fold_block_arguments[] = {
    BLOCK, OPTIONS, OQ_SCALAR(learnables, .then = take_learnables), OQ_THREADS, OQ_DERIVED(make_folded),
};

static oq_code fold_block_run(oq_call *call, values *v)
{
    return oq_fold_block(&call->context, &v->spec, &v->tensors, &v->options, v->theta, &v->folded);
}

static PyObject *folded_tensors(oq_call *call, values *v)
{
    (void)call;
    return Py_NewRef(v->folded_tensors);
}

OQ_FUNCTION_WITH(fold_block, folded_tensors);

/* ---- block_loss ------------------------------------------------------------ */

static const oq_argument block_loss_arguments[] = {
    BLOCK,
    DATA,
    OPTIONS,
    OQ_SCALAR(learnables, .then = take_learnables),
    OQ_SCALAR(epoch, .flags = OQ_KEYWORD),
    AHEAD,
    OQ_THREADS,
    OQ_RESULT(dtheta, "t"),
};

static oq_code block_loss_run(oq_call *call, values *v)
{
    const oq_calibration_data data = data_of(call, v);
    return oq_block_loss(&call->context, &v->spec, &v->tensors, &v->options, &data, v->theta, v->epoch, &v->loss,
                         v->dtheta);
}

static PyObject *loss_and_gradients(oq_call *call, values *v)
{
    return Py_BuildValue("dN", v->loss, oq_learnables_to_dict(call, &v->list, v->dtheta));
}

OQ_FUNCTION_WITH(block_loss, loss_and_gradients);

#ifdef OQ_DOUBLE
static PyObject *tape(PyObject *module, PyObject *args)
{
    int mode;
    (void)module;
    if (!PyArg_ParseTuple(args, "i:_tape", &mode)) return NULL;
    if (mode < OQ_TAPE_OFF || mode > OQ_TAPE_REPLAY)
        return PyErr_Format(PyExc_ValueError, "mode must be 0 (off), 1 (record) or 2 (replay), got %d", mode);
    oq_tape_start((oq_tape_mode)mode);
    Py_RETURN_NONE;
}
#endif

static PyObject *judges(PyObject *module, PyObject *args)
{
    (void)module;
    long long samples, tokens;
    if (!PyArg_ParseTuple(args, "LL:judges", &samples, &tokens)) return NULL;
    const int64_t count = oq_judges(samples, tokens < 1 ? 1 : tokens);
    PyObject *windows = PyList_New((Py_ssize_t)count);
    for (int64_t i = 0; windows && i < count; i++) {
        PyObject *window = PyLong_FromLongLong(oq_judge(samples, count, i));
        if (!window || PyList_SetItem(windows, (Py_ssize_t)i, window) < 0) Py_CLEAR(windows);
    }
    return windows;
}

PyMethodDef oq_block_methods[] = {
    OQ_METHOD(block_forward, "One transformer block."),
    OQ_METHOD(block_backward, "The gradients of its input and of its linears' weights."),
    OQ_METHOD(calibrate_block, "Train, check and fold one block."),
    {"judges", judges, METH_VARARGS, "The windows that tell the loss of a block."},
    OQ_METHOD(fold_block, "Fold given learnables into one block."),
    OQ_METHOD(block_loss, "The loss the training descends, and its gradient."),
#ifdef OQ_DOUBLE
    {"_tape", tape, METH_VARARGS, "Test hook: record or replay the straight-through surrogate."},
#endif
    {NULL, NULL, 0, NULL},
};
