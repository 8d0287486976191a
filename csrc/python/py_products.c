/* The plain products behind everything, for tests and benchmarks. */
#include "math/bf16.h"
#include "math/gemm.h"
#include "math/igemm.h"
#include "math/inverse.h"
#include "math/lay_out.h"
#include "math/sgemm_avx2.h"
#include "python/function.h"
#include "python/topics.h"
#include "quant/bare_product.h"
#include "quant/byte_product.h"

struct values {
    const oq_real *a, *b;
    const double *square;
    bool transpose_a, transpose_b, pivot;
    unsigned by;
    oq_real *product;
    double *inverse;
    const uint8_t *left, *right;
    bool by_rows, often;
    int64_t zero, flip;
    oq_bare_product bare;
    int64_t repeats;
    double *seconds;
};

/* op(a) [m, k] op(b) [k, n] from the stored a [r, s] and b [t, u]. */
static int product_sizes(oq_call *call, values *v)
{
    const int64_t k = oq_size(call, v->transpose_a ? 'r' : 's'), inner = oq_size(call, v->transpose_b ? 'u' : 't');
    call->size['m'] = oq_size(call, v->transpose_a ? 's' : 'r');
    call->size['n'] = oq_size(call, v->transpose_b ? 't' : 'u');
    call->size['k'] = k;
    if (k == inner) return 0;
    PyErr_Format(PyExc_ValueError, "b: expected an inner dimension of %lld, as of a, got %lld", (long long)k,
                 (long long)inner);
    return -1;
}

/* The fastest here, or one of ours by name. */
enum { BEST, REFERENCE, AVX2, BFLOAT16 };
static const char *const ways[] = {"best", "reference", "avx2", "bfloat16", NULL};

static const oq_argument matmul_arguments[] = {
    OQ_ARRAY(a, "rs"),
    OQ_ARRAY(b, "tu"),
    OQ_SCALAR(transpose_a, .flags = OQ_KEYWORD),
    OQ_SCALAR(transpose_b, .flags = OQ_KEYWORD),
    OQ_THREADS,
    OQ_SCALAR(by, .flags = OQ_KEYWORD, .choices = ways),
    OQ_DERIVED(product_sizes),
    OQ_RESULT(product, "mn"),
};

/* Of operands that are rounded first. */
static oq_code matmul_halves(oq_context *context, const oq_gemm_args *g)
{
    const int64_t a_size = g->m * g->k, b_size = g->k * g->n;
    uint16_t *a, *b;
    if (!oq_has_bf16()) return oq_fail(context, OQ_UNSUPPORTED, "by: this processor has no fast bfloat16");
    OQ_NEW(context, a, a_size);
    OQ_NEW(context, b, b_size);
    oq_bf16_from_real(context, g->a, a, a_size);
    oq_bf16_from_real(context, g->b, b, b_size);
    return oq_bf16_gemm(context, &(oq_bf16_gemm_args){.transpose_a = g->transpose_a,
                                                      .transpose_b = g->transpose_b,
                                                      .m = g->m,
                                                      .n = g->n,
                                                      .k = g->k,
                                                      .a = a,
                                                      .lda = g->lda,
                                                      .b = b,
                                                      .ldb = g->ldb,
                                                      .c = g->c,
                                                      .ldc = g->ldc});
}

static oq_code matmul_run(oq_call *call, values *v)
{
    const oq_gemm_args g = {.transpose_a = v->transpose_a,
                            .transpose_b = v->transpose_b,
                            .m = oq_size(call, 'm'),
                            .n = oq_size(call, 'n'),
                            .k = oq_size(call, 'k'),
                            .alpha = 1,
                            .a = v->a,
                            .b = v->b,
                            .lda = oq_size(call, 's'),
                            .ldb = oq_size(call, 'u'),
                            .ldc = oq_size(call, 'n'),
                            .c = v->product};
    if (v->by == BEST) return oq_gemm(&call->context, &g);
    if (v->by == BFLOAT16) return matmul_halves(&call->context, &g);
    if (v->by == AVX2 && !oq_sgemm_avx2_runs())
        return oq_fail(&call->context, OQ_UNSUPPORTED, "by: this processor has no avx2");
    if (v->by == AVX2) return oq_sgemm_avx2(&g);
    oq_gemm_reference(&g);
    return OQ_OK;
}

static const oq_argument inverse_arguments[] = {
    {.name = "a", OQ_LINE(values, square), .shape = "nn"},
    OQ_SCALAR(pivot, .flags = OQ_OPTIONAL),
    {.name = "threads", .kind = OQ_THREAD_COUNT, .flags = OQ_OPTIONAL, .otherwise = 1},
    OQ_RESULT(inverse, "nn"),
};

static oq_code inverse_run(oq_call *call, values *v)
{
    return oq_inverse(&call->context, v->square, v->inverse, oq_size(call, 'n'), v->pivot, "a");
}

static int times(oq_call *call, values *v)
{
    call->size['r'] = v->repeats;
    return 0;
}

static const oq_argument time_product_arguments[] = {
    {.name = "kind", OQ_LINE(values, bare.kind), .choices = oq_products_names},
    {.name = "m", OQ_LINE(values, bare.m), .range = "[1, 1e6]"},
    {.name = "n", OQ_LINE(values, bare.n), .range = "[1, 1e6]"},
    {.name = "k", OQ_LINE(values, bare.k), .range = "[1, 1e6]"},
    {.name = "transpose_a", OQ_LINE(values, bare.transpose_a), .flags = OQ_KEYWORD},
    {.name = "transpose_b", OQ_LINE(values, bare.transpose_b), .flags = OQ_KEYWORD},
    {.name = "a_bits", OQ_LINE(values, bare.a_bits), .flags = OQ_KEYWORD, .otherwise = 8, .range = "[1, 8]"},
    {.name = "b_bits", OQ_LINE(values, bare.b_bits), .flags = OQ_KEYWORD, .otherwise = 8, .range = "[1, 8]"},
    {.name = "own", OQ_LINE(values, bare.own), .flags = OQ_KEYWORD},
    {.name = "repeats",
     OQ_LINE(values, repeats),
     .flags = OQ_KEYWORD,
     .otherwise = 3,
     .range = "[1, 1e6]",
     .then = times},
    OQ_THREADS,
    OQ_RESULT(seconds, "r"),
};

static oq_code time_product_run(oq_call *call, values *v)
{
    return oq_time_product(&call->context, &v->bare, v->repeats, v->seconds);
}

/* left [m, k] right, stored [n, k] or by rows [k, n]. */
static int byte_sizes(oq_call *call, values *v)
{
    const int64_t inner = oq_size(call, v->by_rows ? 't' : 'u');
    call->size['n'] = oq_size(call, v->by_rows ? 'u' : 't');
    if (oq_size(call, 'k') == inner) return 0;
    PyErr_Format(PyExc_ValueError, "right: expected an inner dimension of %lld, as of left, got %lld",
                 (long long)oq_size(call, 'k'), (long long)inner);
    return -1;
}

static const oq_argument byte_product_arguments[] = {
    OQ_ARRAY(left, "mk"),
    OQ_ARRAY(right, "tu"),
    OQ_SCALAR(by_rows, .flags = OQ_KEYWORD),
    OQ_SCALAR(often, .flags = OQ_KEYWORD),
    OQ_SCALAR(zero, .flags = OQ_KEYWORD, .range = "[0, 255]"),
    OQ_SCALAR(flip, .flags = OQ_KEYWORD, .range = "[0, 255]"),
    OQ_THREADS,
    OQ_DERIVED(byte_sizes),
    OQ_RESULT(product, "mn"),
};

static oq_code byte_product_run(oq_call *call, values *v)
{
    const int64_t m = oq_size(call, 'm'), n = oq_size(call, 'n'), k = oq_size(call, 'k');
    oq_right b = {.layout = v->by_rows ? OQ_BY_ROWS : OQ_BY_COLUMNS,
                  .n = n,
                  .k = k,
                  .bytes = (const int8_t *)v->right,
                  .flip = (uint8_t)v->flip,
                  .most = 128};
    oq_real *ones;
    int32_t *zeros;
    if (!oq_has_igemm()) return oq_fail(&call->context, OQ_UNSUPPORTED, "this processor multiplies floats faster");
    OQ_NEW(&call->context, ones, m + n);
    OQ_NEW(&call->context, zeros, m);
    for (int64_t i = 0; i < m + n; i++) ones[i] = 1;
    for (int64_t i = 0; i < m; i++) zeros[i] = (int32_t)v->zero;
    OQ_TRY(oq_lay_out(&call->context, &b, v->often));
    return oq_byte_product(&call->context, &(oq_byte_product_args){.m = m,
                                                                   .a = v->left,
                                                                   .a_most = UINT8_MAX,
                                                                   .b = &b,
                                                                   .a_scale = ones,
                                                                   .b_scale = ones,
                                                                   .a_zero = zeros,
                                                                   .y = v->product});
}

OQ_FUNCTION(matmul);
OQ_FUNCTION(byte_product);
OQ_FUNCTION(inverse);
OQ_FUNCTION(time_product);

PyMethodDef oq_product_methods[] = {
    OQ_METHOD(matmul, "op(a) op(b)."),
    OQ_METHOD(byte_product, "The product of bytes without and with a sign."),
    OQ_METHOD(inverse, "The inverse, in double."),
    OQ_METHOD(time_product, "Seconds of a bare product."),
    {NULL, NULL, 0, NULL},
};
