/* Products of bfloat16 operands by oneDNN's matrix-multiplication primitive: it has no plain function for them. */
#define _POSIX_C_SOURCE 200809L

#include "math/onednn.h"

#ifdef OQ_HAVE_DNNL_HEADERS

#include "math/onednn_library.h"

/* The functions used, each a member of this name: written once, looked up once. */
#define FUNCTIONS(X)                   \
    X(engine_create)                   \
    X(stream_create)                   \
    X(stream_wait)                     \
    X(stream_destroy)                  \
    X(memory_desc_create_with_strides) \
    X(memory_desc_destroy)             \
    X(memory_create)                   \
    X(memory_destroy)                  \
    X(matmul_primitive_desc_create)    \
    X(primitive_desc_destroy)          \
    X(primitive_create)                \
    X(primitive_execute)               \
    X(primitive_destroy)

#define MEMBER(name) __typeof__(&dnnl_##name) name;
static struct {
    FUNCTIONS(MEMBER)
    dnnl_engine_t engine;
} dnnl;

bool oq_bf16_bind(void *handle)
{
#define LOOK_UP(name) \
    if (!oq_library_find(handle, "dnnl_" #name, &dnnl.name)) return false;
    FUNCTIONS(LOOK_UP)
    return dnnl.engine_create(&dnnl.engine, dnnl_cpu, 0) == dnnl_success;
}

typedef struct {
    dnnl_memory_desc_t a, b, c;
    dnnl_primitive_desc_t description;
    dnnl_primitive_t primitive;
    dnnl_memory_t a_memory, b_memory, c_memory;
    dnnl_stream_t stream;
} product;

/* Return the first failure. */
#define TRY(call)                                    \
    do {                                             \
        const dnnl_status_t status_ = (call);        \
        if (status_ != dnnl_success) return status_; \
    } while (0)

static dnnl_status_t describe(dnnl_memory_desc_t *desc, dnnl_data_type_t type, bool transposed, dnnl_dim_t rows,
                              dnnl_dim_t columns, dnnl_dim_t ld)
{
    const dnnl_dims_t sizes = {rows, columns};
    const dnnl_dims_t strides = {transposed ? 1 : ld, transposed ? ld : 1};
    return dnnl.memory_desc_create_with_strides(desc, 2, sizes, type, strides);
}

/* About 5 us: the library keeps the generated kernels of past descriptions. Without post-operations: to add to a
 * C whose rows lie apart it has nothing but its reference kernel, a thousand times slower. */
static dnnl_status_t prepare(product *p)
{
    TRY(dnnl.matmul_primitive_desc_create(&p->description, dnnl.engine, p->a, p->b, NULL, p->c, NULL));
    return dnnl.primitive_create(&p->primitive, p->description);
}

static dnnl_status_t execute(product *p, const uint16_t *a, const uint16_t *b, float *c)
{
    /* The library takes operands it only reads by plain pointers too. */
    TRY(dnnl.memory_create(&p->a_memory, p->a, dnnl.engine, (void *)(uintptr_t)a));
    TRY(dnnl.memory_create(&p->b_memory, p->b, dnnl.engine, (void *)(uintptr_t)b));
    TRY(dnnl.memory_create(&p->c_memory, p->c, dnnl.engine, c));
    TRY(dnnl.stream_create(&p->stream, dnnl.engine, dnnl_stream_default_flags));
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, p->a_memory}, {DNNL_ARG_WEIGHTS, p->b_memory}, {DNNL_ARG_DST, p->c_memory}};
    TRY(dnnl.primitive_execute(p->primitive, p->stream, 3, arguments));
    return dnnl.stream_wait(p->stream);
}

static void destroy(product *p)
{
    if (p->stream) dnnl.stream_destroy(p->stream);
    if (p->a_memory) dnnl.memory_destroy(p->a_memory);
    if (p->b_memory) dnnl.memory_destroy(p->b_memory);
    if (p->c_memory) dnnl.memory_destroy(p->c_memory);
    if (p->primitive) dnnl.primitive_destroy(p->primitive);
    if (p->description) dnnl.primitive_desc_destroy(p->description);
    if (p->a) dnnl.memory_desc_destroy(p->a);
    if (p->b) dnnl.memory_desc_destroy(p->b);
    if (p->c) dnnl.memory_desc_destroy(p->c);
}

static dnnl_status_t run(product *p, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                         const uint16_t *a, int64_t lda, const uint16_t *b, int64_t ldb, float *c, int64_t ldc)
{
    TRY(describe(&p->a, dnnl_bf16, transpose_a, m, k, lda));
    TRY(describe(&p->b, dnnl_bf16, transpose_b, k, n, ldb));
    TRY(describe(&p->c, dnnl_f32, false, m, n, ldc));
    TRY(prepare(p));
    return execute(p, a, b, c);
}

oq_code oq_onednn_bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                            int64_t lda, const uint16_t *b, int64_t ldb, float *c, int64_t ldc)
{
    product p = {0};
    const oq_library_call call = oq_library_enter();
    const dnnl_status_t status = run(&p, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc);
    destroy(&p);
    return oq_library_leave(&call, status);
}

#endif
