/* LET on one linear; the fixed rotation; the affine map, its gradual mask and the Levy-Desplanques check. */
#include "math/hadamard.h"
#include "python/function.h"
#include "python/topics.h"
#include "transform/affine_inverse.h"
#include "transform/dominance.h"
#include "transform/let_linear.h"

/* LET: rows of k inputs, m outputs.  Matrices: n by n, any number of them. */
struct values {
    const oq_real *x, *weight, *scale, *shift, *bias;
    const oq_real *dx_transformed, *dweight_transformed, *dbias_transformed;
    const void *moved_bias; /* not NULL: there is a transformed bias */
    oq_real *x_out, *weight_out, *bias_out, *dx, *dweight, *dscale, *dshift;

    const oq_real *parameters;
    const double *a, *da, *dinverse;
    oq_parametrization parametrization;
    double stability, tau;
    int64_t band, width, epoch, epochs, changed;
    double *map, *inverse, *mask, *margins, *bounds, *projected;
    oq_real *dparameters;
    oq_real *rotated;
};

/* ---- let_forward, let_backward --------------------------------------------- */

static oq_let_linear let_of(const oq_call *call, const values *v)
{
    return (oq_let_linear){oq_size(call, '*'), oq_size(call, 'k'), oq_size(call, 'm'), v->x,
                           v->weight,          v->scale,           v->shift,           v->bias};
}

static int bias_moves(oq_call *call, values *v)
{
    (void)call;
    v->moved_bias = v->shift ? v->shift : v->bias;
    return 0;
}

static const oq_argument let_forward_arguments[] = {
    OQ_ARRAY(x, "*k", .flags = OQ_FINITE),
    OQ_ARRAY(weight, "mk", .flags = OQ_FINITE),
    OQ_ARRAY(scale, "k", .flags = OQ_FINITE),
    OQ_ARRAY(shift, "k", .flags = OQ_OPTIONAL | OQ_FINITE),
    OQ_ARRAY(bias, "m", .flags = OQ_OPTIONAL | OQ_FINITE, .then = bias_moves),
    OQ_THREADS,
    OQ_RESULT(x_out, "*k"),
    OQ_RESULT(weight_out, "mk"),
    OQ_RESULT(bias_out, "m", .when = offsetof(values, moved_bias)),
};

static oq_code let_forward_run(oq_call *call, values *v)
{
    const oq_let_linear let = let_of(call, v);
    return oq_let_linear_forward(&call->context, &let, v->x_out, v->weight_out, v->bias_out);
}

static const oq_argument let_backward_arguments[] = {
    OQ_ARRAY(x, "*k", .flags = OQ_FINITE),
    OQ_ARRAY(weight, "mk", .flags = OQ_FINITE),
    OQ_ARRAY(scale, "k", .flags = OQ_FINITE),
    OQ_ARRAY(dx_transformed, "*k", .flags = OQ_FINITE),
    OQ_ARRAY(dweight_transformed, "mk", .flags = OQ_FINITE),
    OQ_ARRAY(shift, "k", .flags = OQ_OPTIONAL | OQ_FINITE),
    OQ_ARRAY(dbias_transformed, "m", .flags = OQ_OPTIONAL | OQ_FINITE),
    OQ_THREADS,
    OQ_RESULT(dx, "*k"),
    OQ_RESULT(dweight, "mk"),
    OQ_RESULT(dscale, "k"),
    OQ_RESULT(dshift, "k", .when = offsetof(values, shift)),
};

static oq_code let_backward_run(oq_call *call, values *v)
{
    const oq_let_linear let = let_of(call, v);
    const oq_let_gradients gradients = {
        v->dx_transformed, v->dweight_transformed, v->dbias_transformed, v->dx, v->dweight, v->dscale, v->dshift};
    return oq_let_linear_backward(&call->context, &let, &gradients);
}

/* ---- hadamard -------------------------------------------------------------- */

static const oq_argument hadamard_arguments[] = {
    OQ_ARRAY(x, "*ns"), /* s numbers lie side by side and turn alike */
    OQ_THREADS,
    OQ_RESULT(rotated, "*ns"),
};

static oq_code hadamard_run(oq_call *call, values *v)
{
    const int64_t rows = oq_size(call, '*'), n = oq_size(call, 'n'), stride = oq_size(call, 's');
    if (n < 1 || stride < 1) return OQ_OK;
    memcpy(v->rotated, v->x, sizeof *v->x * (size_t)(rows * n * stride));
    return oq_hadamard(&call->context, v->rotated, rows, n, stride);
}

/* ---- affine_forward, affine_backward --------------------------------------- */

static const char *const parametrizations[] = {"relative", "absolute", NULL};

#define AFFINE                                                                          \
    OQ_SCALAR(band, .flags = OQ_KEYWORD, .otherwise = -1),                              \
        OQ_SCALAR(stability, .flags = OQ_KEYWORD, .otherwise = 1, .range = "[0, inf)"), \
        OQ_SCALAR(parametrization, .flags = OQ_KEYWORD, .choices = parametrizations)

/* band < 0: fully open. */
static oq_affine affine_of(const oq_call *call, const values *v)
{
    const int64_t n = oq_size(call, 'n');
    return (oq_affine){.parametrization = v->parametrization,
                       .mask = {v->band < 0 ? n : v->band, v->stability},
                       .blocks = oq_size(call, '*'),
                       .width = n};
}

static const oq_argument affine_forward_arguments[] = {
    OQ_ARRAY(parameters, "*nn", .flags = OQ_FINITE),
    AFFINE,
    OQ_THREADS,
    OQ_RESULT(map, "*nn"),
    OQ_RESULT(inverse, "*nn"),
};

static oq_code affine_forward_run(oq_call *call, values *v)
{
    const oq_affine affine = affine_of(call, v);
    return oq_affine_with_inverse(&call->context, &affine, v->parameters, v->map, v->inverse);
}

static const oq_argument affine_backward_arguments[] = {
    OQ_ARRAY(parameters, "*nn", .flags = OQ_FINITE),
    OQ_ARRAY(da, "*nn", .flags = OQ_NULLABLE | OQ_FINITE),
    OQ_ARRAY(dinverse, "*nn", .flags = OQ_NULLABLE | OQ_FINITE),
    AFFINE,
    OQ_THREADS,
    OQ_RESULT(dparameters, "*nn"),
};

static oq_code affine_backward_run(oq_call *call, values *v)
{
    const oq_affine affine = affine_of(call, v);
    return oq_affine_with_inverse_backward(&call->context, &affine, v->parameters, v->da, v->dinverse,
                                           v->dparameters);
}

/* ---- gradual_mask ---------------------------------------------------------- */

static int check_mask(oq_call *call, values *v)
{
    call->size['n'] = v->width;
    if (v->width >= 0 && v->width <= INT32_MAX && v->epochs <= INT32_MAX && v->epoch >= 0 && v->epoch < v->epochs)
        return 0;
    PyErr_Format(PyExc_ValueError,
                 "expected a width of at least 0 and 0 <= epoch < epochs, got %lld, %lld and %lld",
                 (long long)v->width, (long long)v->epoch, (long long)v->epochs);
    return -1;
}

static const oq_argument gradual_mask_arguments[] = {
    OQ_SCALAR(width),
    OQ_SCALAR(epoch),
    OQ_SCALAR(epochs, .then = check_mask),
    OQ_SCALAR(stability, .flags = OQ_OPTIONAL, .otherwise = 1, .range = "[0, inf)"),
    OQ_RESULT(mask, "nn"),
};

static oq_code gradual_mask_run(oq_call *call, values *v)
{
    const oq_mask rule = {oq_mask_band(v->width, v->epoch, v->epochs), v->stability};
    (void)call;
    for (int64_t i = 0; i < v->width; i++)
        for (int64_t j = 0; j < v->width; j++) v->mask[i * v->width + j] = oq_mask_value(rule, i, j);
    return OQ_OK;
}

/* ---- dominance ------------------------------------------------------------- */

static const oq_argument dominance_margins_arguments[] = {
    OQ_ARRAY(a, "*nn", .flags = OQ_FINITE),
    OQ_RESULT(margins, "*n"),
};

static oq_code dominance_margins_run(oq_call *call, values *v)
{
    const int64_t n = oq_size(call, 'n');
    for (int64_t r = 0; r < oq_size(call, '*') * n; r++) v->margins[r] = oq_row_margin(v->a + r * n, r % n, n);
    return OQ_OK;
}

static const oq_argument varah_bound_arguments[] = {
    OQ_ARRAY(a, "*nn", .flags = OQ_FINITE),
    OQ_RESULT(bounds, "*"),
};

static oq_code varah_bound_run(oq_call *call, values *v)
{
    const int64_t n = oq_size(call, 'n');
    for (int64_t b = 0; b < oq_size(call, '*'); b++)
        v->bounds[b] = oq_varah_bound(oq_weakest_row(v->a + b * n * n, n).margin);
    return OQ_OK;
}

static const oq_argument project_dominant_arguments[] = {
    OQ_ARRAY(a, "*nn", .flags = OQ_FINITE),
    OQ_SCALAR(tau, .flags = OQ_OPTIONAL, .otherwise = 0.05, .range = "(0, 1)"),
    OQ_RESULT(projected, "*nn"),
    OQ_SCALAR(changed, .flags = OQ_MADE),
};

static oq_code project_dominant_run(oq_call *call, values *v)
{
    const int64_t n = oq_size(call, 'n'), blocks = oq_size(call, '*');
    memcpy(v->projected, v->a, sizeof *v->a * (size_t)(blocks * n * n));
    for (int64_t b = 0; b < blocks; b++) v->changed += oq_project_dominant(v->projected + b * n * n, n, v->tau);
    return OQ_OK;
}

OQ_FUNCTION(let_forward);
OQ_FUNCTION(let_backward);
OQ_FUNCTION(hadamard);
OQ_FUNCTION(affine_forward);
OQ_FUNCTION(affine_backward);
OQ_FUNCTION(gradual_mask);
OQ_FUNCTION(dominance_margins);
OQ_FUNCTION(varah_bound);
OQ_FUNCTION(project_dominant);

PyMethodDef oq_transform_methods[] = {
    OQ_METHOD(let_forward, "(x - shift) / scale, W scale, b + W shift."),
    OQ_METHOD(let_backward, "Gradients of x, W, scale and shift."),
    OQ_METHOD(hadamard, "x times the fixed rotation along its axis before the last."),
    OQ_METHOD(affine_forward, "A and its inverse from the parameters."),
    OQ_METHOD(affine_backward, "Gradient of the parameters."),
    OQ_METHOD(gradual_mask, "The mask of an epoch."),
    OQ_METHOD(dominance_margins, "|A_ii| - sum |A_ij| of every row."),
    OQ_METHOD(varah_bound, "1 / smallest margin."),
    OQ_METHOD(project_dominant, "Shrink the off-diagonals of weak rows."),
    {NULL, NULL, 0, NULL},
};
