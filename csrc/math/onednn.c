/* dlopen and pthread_sigmask are POSIX, not C11. */
#define _POSIX_C_SOURCE 200809L

#include "math/onednn.h"

#include <stdio.h>

#ifdef OQ_HAVE_DNNL_HEADERS

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "base/cpu.h"
#include "math/onednn_library.h"

/* Why dnnl_sgemm and no matmul primitive: measured on one Zen 4 core (AVX-512,
 * oneDNN 3.2), GFLOP/s of dnnl_sgemm / of a matmul primitive made beforehand,
 * m = 512, op(A) op(B) as N N, N T, T N:
 *
 *      (k, n)             NN           NT           TN
 *      576, 1536       113 / 110    104 / 107    111 / 102
 *      1536, 576       114 / 112    107 / 110    107 / 108
 *      576, 576        116 / 116    105 / 114    116 / 112
 *      2048, 5632      108 / 106     96 / 107    107 /  98
 *
 * The same within the noise, yet the function needs no cache of primitives
 * (0.3 to 1 ms to make each), no scratchpads and no locks. */
typedef dnnl_status_t (*sgemm_function)(char, char, dnnl_dim_t, dnnl_dim_t, dnnl_dim_t, float, const float *,
                                        dnnl_dim_t, const float *, dnnl_dim_t, float, float *, dnnl_dim_t);
typedef dnnl_status_t (*igemm_function)(char, char, char, dnnl_dim_t, dnnl_dim_t, dnnl_dim_t, float, const void *,
                                        dnnl_dim_t, int8_t, const int8_t *, dnnl_dim_t, int8_t, float, int32_t *,
                                        dnnl_dim_t, const int32_t *);
typedef const dnnl_version_t *(*version_function)(void);

/* Filled once by oq_onednn_load. The thread settings are those of the OpenMP
 * runtime libdnnl was linked with, which need not be ours. */
static struct {
    sgemm_function sgemm;
    igemm_function signed_igemm, unsigned_igemm;
    bool bf16;
    int (*get_max_threads)(void);
    void (*set_num_threads)(int);
    char version[32];
} library;

static oq_code refuse(oq_error *error, const char *path, const char *reason)
{
    error->code = OQ_BACKEND;
    snprintf(error->message, sizeof error->message, "oneDNN %s: %s", path, reason);
    return OQ_BACKEND;
}

/* ISO C has no cast from an object pointer to a function pointer; POSIX promises the bytes fit. */
bool oq_library_find(void *handle, const char *name, void *function_pointer)
{
    void *symbol = dlsym(handle, name);
    if (symbol) memcpy(function_pointer, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* NULL, or why this library cannot be used. */
static const char *check_version(version_function version_of)
{
    const dnnl_version_t *version = version_of();
    if (version->major != DNNL_VERSION_MAJOR) {
        return "its major version is not the one this was built with";
    }
    if (version->cpu_runtime != DNNL_RUNTIME_OMP && version->cpu_runtime != DNNL_RUNTIME_SEQ) {
        return "its CPU runtime is neither OpenMP nor sequential";
    }
    return NULL;
}

oq_code oq_onednn_load(const char *path, oq_error *error)
{
    version_function version_of;
    sgemm_function sgemm;
    if (library.sgemm) return refuse(error, path, "a library is already loaded");
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return refuse(error, path, dlerror());
    const char *reason = "dnnl_sgemm or dnnl_version is missing";
    if (oq_library_find(handle, "dnnl_version", &version_of) && oq_library_find(handle, "dnnl_sgemm", &sgemm)) {
        reason = check_version(version_of);
    }
    if (reason) {
        refuse(error, path, reason);
        dlclose(handle);
        return OQ_BACKEND;
    }
    if (!oq_library_find(handle, "omp_get_max_threads", &library.get_max_threads) ||
        !oq_library_find(handle, "omp_set_num_threads", &library.set_num_threads)) {
        library.set_num_threads = NULL;
    }
    const dnnl_version_t *version = version_of();
    snprintf(library.version, sizeof library.version, "%d.%d.%d", version->major, version->minor, version->patch);
    if (!oq_library_find(handle, "dnnl_gemm_s8s8s32", &library.signed_igemm) ||
        !oq_library_find(handle, "dnnl_gemm_u8s8s32", &library.unsigned_igemm)) {
        library.signed_igemm = NULL;
    }
    library.bf16 = oq_bf16_bind(handle);
    library.sgemm = sgemm;
    return OQ_OK;
}

/* oneDNN's generated kernels seem to point the stack register into a heap buffer while they run: a handler that
 * starts there writes its frame over the heap.  So signals wait for the end of the product.  (Measured: a timer
 * of 1 ms and a Python handler corrupt the heap within a second.)  Faults are never held back. */
static void hold_signals(sigset_t *before)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigset_t held;
    sigfillset(&held);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; ++i) sigdelset(&held, faults[i]);
    pthread_sigmask(SIG_BLOCK, &held, before);
}

/* oneDNN cuts its blocks by the number of threads it may use, which moves the last bits. It is told one even
 * where it may not start any, so that a product has the same bits alone and inside oq_parallel_for. */
oq_library_call oq_library_enter(void)
{
    oq_library_call call = {.threads = library.set_num_threads ? library.get_max_threads() : 1};
    if (call.threads != 1) library.set_num_threads(1);
    hold_signals(&call.signals);
    return call;
}

oq_code oq_library_leave(const oq_library_call *call, dnnl_status_t status)
{
    pthread_sigmask(SIG_SETMASK, &call->signals, NULL);
    if (call->threads != 1) library.set_num_threads(call->threads);
    if (status == dnnl_success) return OQ_OK;
    return status == dnnl_out_of_memory ? OQ_OUT_OF_MEMORY : OQ_BACKEND;
}

bool oq_onednn_loaded(void) { return library.sgemm != NULL; }

const char *oq_onednn_version(void) { return library.version; }

oq_code oq_onednn_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                        int64_t ldc)
{
    const oq_library_call call = oq_library_enter();
    const dnnl_status_t status = library.sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a,
                                               lda, b, ldb, beta, c, ldc);
    return oq_library_leave(&call, status);
}

bool oq_onednn_has_igemm(void) { return library.signed_igemm && oq_cpu_features()->avx512_vnni; }

oq_code oq_onednn_igemm(bool signed_a, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                        const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc)
{
    const igemm_function igemm = signed_a ? library.signed_igemm : library.unsigned_igemm;
    const int32_t no_offset = 0;
    const oq_library_call call = oq_library_enter();
    const dnnl_status_t status = igemm('N', 'T', 'F', m, n, k, 1, a, lda, 0, b, ldb, 0, 0, c, ldc, &no_offset);
    return oq_library_leave(&call, status);
}

bool oq_onednn_has_bf16(void) { return library.bf16 && oq_cpu_features()->fast_bf16; }

#else /* built where the headers were not: the reference products serve alone */

oq_code oq_onednn_load(const char *path, oq_error *error)
{
    error->code = OQ_UNSUPPORTED;
    snprintf(error->message, sizeof error->message, "cannot load %s: this build was made without oneDNN's headers",
             path);
    return OQ_UNSUPPORTED;
}

bool oq_onednn_loaded(void) { return false; }

const char *oq_onednn_version(void) { return ""; }

oq_code oq_onednn_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c,
                        int64_t ldc)
{
    (void)transpose_a, (void)transpose_b, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)lda, (void)b;
    (void)ldb, (void)beta, (void)c, (void)ldc;
    return OQ_BACKEND;
}

bool oq_onednn_has_igemm(void) { return false; }

oq_code oq_onednn_igemm(bool signed_a, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                        const int8_t *b, int64_t ldb, int32_t *c, int64_t ldc)
{
    (void)signed_a, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)b, (void)ldb, (void)c, (void)ldc;
    return OQ_BACKEND;
}

bool oq_onednn_has_bf16(void) { return false; }

oq_code oq_onednn_bf16_gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const uint16_t *a,
                            int64_t lda, const uint16_t *b, int64_t ldb, float *c, int64_t ldc)
{
    (void)transpose_a, (void)transpose_b, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)b, (void)ldb;
    (void)c, (void)ldc;
    return OQ_BACKEND;
}

#endif
