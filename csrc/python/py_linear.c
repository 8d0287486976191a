/* Calibrating a single linear layer. */
#include <string.h>

#include "calibrate/calibrate_linear.h"
#include "python/block_args.h"
#include "python/topics.h"
#include "python/training.h"

/* o outputs, i inputs; e epochs, t numbers in all learnables, g groups a row. */
struct values {
    const oq_real *weight, *x, *bias;
    oq_options options;
    PyObject *learnables, *on_step, *on_epoch;
    int64_t epoch;
    oq_real *theta, *dtheta;
    double loss, *trace;
    PyObject *tensors; /* the folded ones, owned by the call */

    oq_learnables list;
    oq_folded_layer folded;
    oq_calibration_result result;
};

static int list_learnables(oq_call *call, values *v)
{
    const int64_t in = oq_size(call, 'i'), group = oq_group_within(oq_scheme_of(&v->options, 0).group_size, in);
    oq_learnables_of_layer(oq_size(call, 'o'), in, &v->options, &v->list);
    call->size['t'] = v->list.total;
    call->size['e'] = v->options.epochs;
    call->size['g'] = group ? (in + group - 1) / group : 0;
    return 0;
}

static int make_folded(oq_call *call, values *v)
{
    oq_folded_layer *f = &v->folded;
    const oq_map_kind map = v->options.map[OQ_SITE_NORM1];
    const bool quantized = oq_is_quantized(oq_scheme_of(&v->options, 0).quantizer), mapped = map != OQ_MAP_NONE;
    const bool shifted = v->options.shift && mapped, dense = map == OQ_MAP_DENSE;
    const char *shape = dense ? "ii" : "i";
    const oq_tensor tensors[] = {
        {"weight", !quantized, OQ_REALS, "oi", &f->weight},
        {"codes", quantized, OQ_BYTES, "oi", &f->codes},
        {"scale", quantized, OQ_REALS, "og", &f->scale},
        {"zero_point", quantized, OQ_BYTES, "og", &f->zero_point},
        {"bias", v->bias || shifted, OQ_REALS, "o", &f->bias},
        {"shift", shifted, OQ_REALS, "i", &f->shift},
        {"map", mapped, OQ_REALS, shape, &f->map},
        {"map_inverse", mapped, OQ_REALS, shape, &f->map_inverse},
        {"margins", dense, OQ_DOUBLES, "i", &f->margins},
    };
    v->tensors = oq_new_dict(call);
    return v->tensors ? oq_put_tensors(call, v->tensors, "", tensors, OQ_COUNT(tensors)) : -1;
}

static int take_learnables(oq_call *call, values *v)
{
    return oq_learnables_from_dict(call, &v->list, v->learnables, v->theta);
}

static oq_layer layer_of(const oq_call *call, const values *v)
{
    return (oq_layer){oq_size(call, '*'), oq_size(call, 'i'), oq_size(call, 'o'), v->x, v->weight, v->bias};
}

#define LAYER OQ_ARRAY(weight, "oi"), OQ_ARRAY(x, "*i"), OQ_ARRAY(bias, "o", .flags = OQ_NULLABLE)
#define OPTIONS OQ_STRUCT(options, oq_option_fields, .then = list_learnables), OQ_RESULT(theta, "t")

/* ---- calibrate_linear ------------------------------------------------------ */

static const oq_argument calibrate_linear_arguments[] = {
    LAYER,
    OPTIONS,
    OQ_SCALAR(on_step, .flags = OQ_KEYWORD),
    OQ_SCALAR(on_epoch, .flags = OQ_KEYWORD),
    OQ_THREADS,
    OQ_RESULT(trace, "e"),
    OQ_DERIVED(make_folded),
};

static oq_code calibrate_linear_run(oq_call *call, values *v)
{
    const oq_layer layer = layer_of(call, v);
    oq_listener listener = {.on_step = v->on_step, .on_epoch = v->on_epoch, .list = &v->list};
    const oq_hooks hooks = oq_python_hooks(&listener);
    v->result = (oq_calibration_result){.theta = v->theta, .trace = v->trace};
    return oq_calibrate_linear(&call->context, &layer, &v->options, &hooks, &v->result, &v->folded);
}

static PyObject *report(oq_call *call, values *v)
{
    static const char *const map_names[] = {"input"};
    PyObject *learnables = oq_learnables_to_dict(call, &v->list, v->theta);
    return oq_training_report(call, &v->result, map_names, learnables, v->tensors);
}

OQ_FUNCTION_WITH(calibrate_linear, report);

/* ---- linear_loss ----------------------------------------------------------- */

static const oq_argument linear_loss_arguments[] = {
    LAYER,
    OPTIONS,
    OQ_SCALAR(learnables, .then = take_learnables),
    OQ_SCALAR(epoch, .flags = OQ_KEYWORD),
    OQ_THREADS,
    OQ_RESULT(dtheta, "t"),
};

static oq_code linear_loss_run(oq_call *call, values *v)
{
    const oq_layer layer = layer_of(call, v);
    return oq_linear_loss(&call->context, &layer, &v->options, v->theta, v->epoch, &v->loss, v->dtheta);
}

static PyObject *loss_and_gradients(oq_call *call, values *v)
{
    return Py_BuildValue("dN", v->loss, oq_learnables_to_dict(call, &v->list, v->dtheta));
}

OQ_FUNCTION_WITH(linear_loss, loss_and_gradients);

PyMethodDef oq_linear_methods[] = {
    OQ_METHOD(calibrate_linear, "Train, check and fold one linear layer."),
    OQ_METHOD(linear_loss, "The loss that training descends, and its gradient."),
    {NULL, NULL, 0, NULL},
};
