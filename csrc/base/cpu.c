/* syscall is no part of C11 or POSIX. */
#define _DEFAULT_SOURCE

#include "base/cpu.h"

#include <stddef.h>
#include <string.h>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Written once, when the library is loaded and no thread can look yet. */
static oq_cpu features;
static char names[96] = "";

const oq_cpu *oq_cpu_features(void) { return &features; }

const char *oq_cpu_names(void) { return names; }

#if defined(__x86_64__) && defined(__GNUC__)
static void add_name(bool present, const char *name)
{
    if (!present) return;
    if (names[0]) strncat(names, " ", sizeof names - strlen(names) - 1);
    strncat(names, name, sizeof names - strlen(names) - 1);
}

/* Whether the system lets this process have tiles: Linux wants to be asked, and may say no. */
static bool may_use_tiles(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

__attribute__((constructor)) static void find_features(void)
{
    __builtin_cpu_init();
    features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    features.avx512f = __builtin_cpu_supports("avx512f");
    features.avx512_vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
#if !defined(__clang__) && __GNUC__ >= 12
    features.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
    /* What goes into tiles is packed by AVX-512; no processor has the one without the other. */
    if (__builtin_cpu_supports("amx-tile") && features.avx512_vnni && may_use_tiles()) {
        features.amx_int8 = __builtin_cpu_supports("amx-int8");
        features.amx_bf16 = __builtin_cpu_supports("amx-bf16");
    }
#endif
    /* By AMX, or by AMD's vector units; Intel's without AMX take two cycles for what floats do in one. */
    features.fast_bf16 = features.amx_bf16 || (features.avx512_bf16 && __builtin_cpu_is("amd"));
    add_name(features.avx2, "avx2");
    add_name(features.avx512f, "avx512f");
    add_name(features.avx512_vnni, "avx512_vnni");
    add_name(features.avx512_bf16, "avx512_bf16");
    add_name(features.amx_int8, "amx_int8");
    add_name(features.amx_bf16, "amx_bf16");
}
#endif
