/* Products of bfloat16 operands by oneDNN's matrix-multiplication primitive: it has no plain function for them. */
#define _POSIX_C_SOURCE 200809L

#include "math/onednn.h"

#ifdef OQ_HAVE_DNNL_HEADERS


#include "base/alloc.h"
#include "base/scratch.h"
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
    X(memory_set_data_handle)          \
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

static void drop(void *user);
static pthread_key_t key; /* of what a thread keeps */
static bool has_key;

bool oq_bf16_bind(void *handle)
{
#define LOOK_UP(name) \
    if (!oq_library_find(handle, "dnnl_" #name, &dnnl.name)) return false;
    FUNCTIONS(LOOK_UP)
    has_key = pthread_key_create(&key, drop) == 0;
    return dnnl.engine_create(&dnnl.engine, dnnl_cpu, 0) == dnnl_success;
}

/* What a product is but for the places of its operands. */
typedef struct {
    bool transpose_a, transpose_b;
    int64_t m, n, k, lda, ldb, ldc;
} shape;

typedef struct {
    bool made;
    uint64_t used; /* when, for the oldest to make room */
    shape shape;
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

/* Without post-operations: to add to a C whose rows lie apart the library has nothing but its reference kernel, a
 * thousand times slower. */
static dnnl_status_t make(product *p)
{
    const shape *s = &p->shape;
    TRY(describe(&p->a, dnnl_bf16, s->transpose_a, s->m, s->k, s->lda));
    TRY(describe(&p->b, dnnl_bf16, s->transpose_b, s->k, s->n, s->ldb));
    TRY(describe(&p->c, dnnl_f32, false, s->m, s->n, s->ldc));
    TRY(dnnl.matmul_primitive_desc_create(&p->description, dnnl.engine, p->a, p->b, NULL, p->c, NULL));
    TRY(dnnl.primitive_create(&p->primitive, p->description));
    TRY(dnnl.memory_create(&p->a_memory, p->a, dnnl.engine, DNNL_MEMORY_NONE));
    TRY(dnnl.memory_create(&p->b_memory, p->b, dnnl.engine, DNNL_MEMORY_NONE));
    TRY(dnnl.memory_create(&p->c_memory, p->c, dnnl.engine, DNNL_MEMORY_NONE));
    TRY(dnnl.stream_create(&p->stream, dnnl.engine, dnnl_stream_default_flags));
    p->made = true;
    return dnnl_success;
}

static void unmake(product *p)
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
    *p = (product){0};
}

/* ---- what a thread keeps ----------------------------------------------------- */

/* To make a product takes about 6 us, as long as a head's attention over a tile: each thread keeps those it made
 * last, four of a hash.  A block has some sixty, panels and tiles counted. */
enum { HASHES = 64, WAYS = 4 };

typedef struct {
    product product[HASHES][WAYS];
    uint64_t clock;
} collection;

static void drop(void *user)
{
    collection *kept = user;
    for (int h = 0; h < HASHES; h++)
        for (int w = 0; w < WAYS; w++) unmake(&kept->product[h][w]);
    oq_free(kept);
}

static bool same(const shape *a, const shape *b)
{
    return a->transpose_a == b->transpose_a && a->transpose_b == b->transpose_b && a->m == b->m && a->n == b->n &&
           a->k == b->k && a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc;
}

static unsigned hash_of(const shape *s)
{
    const int64_t parts[] = {s->transpose_a, s->transpose_b, s->m, s->n, s->k, s->lda, s->ldb, s->ldc};
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        hash = (hash ^ (uint64_t)parts[i]) * UINT64_C(0x9e3779b97f4a7c15);
    return (unsigned)(hash >> 32) % HASHES;
}

/* The product of a shape; where it is not kept, room for it in place of the one that was not used for longest. */
static product *find(collection *kept, const shape *s)
{
    product *ways = kept->product[hash_of(s)], *oldest = ways;
    for (int w = 0; w < WAYS; w++) {
        if (ways[w].used < oldest->used) oldest = &ways[w];
        if (!ways[w].made || !same(&ways[w].shape, s)) continue;
        ways[w].used = ++kept->clock;
        return &ways[w];
    }
    unmake(oldest);
    *oldest = (product){.shape = *s, .used = ++kept->clock};
    return oldest;
}

/* ---- one product --------------------------------------------------------------- */

static dnnl_status_t run(product *p, const uint16_t *a, const uint16_t *b, float *c)
{
    if (!p->made) TRY(make(p));
    /* The library takes operands it only reads by plain pointers too. */
    TRY(dnnl.memory_set_data_handle(p->a_memory, (void *)(uintptr_t)a));
    TRY(dnnl.memory_set_data_handle(p->b_memory, (void *)(uintptr_t)b));
    TRY(dnnl.memory_set_data_handle(p->c_memory, c));
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, p->a_memory}, {DNNL_ARG_WEIGHTS, p->b_memory}, {DNNL_ARG_DST, p->c_memory}};
    TRY(dnnl.primitive_execute(p->primitive, p->stream, 3, arguments));
    return dnnl.stream_wait(p->stream);
}

oq_code oq_onednn_bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                            int64_t lda, const uint16_t *b, int64_t ldb, float *c, int64_t ldc)
{
    product own = {.shape = {transpose_a, transpose_b, m, n, k, lda, ldb, ldc}};
    const oq_library_call call = oq_library_enter();
    collection *kept = has_key ? oq_thread_kept(key, sizeof *kept) : NULL;
    product *p = kept ? find(kept, &own.shape) : &own;
    const dnnl_status_t status = run(p, a, b, c);
    if (!kept || status != dnnl_success) unmake(p);
    return oq_library_leave(&call, status);
}

#endif
