/* The one floating-point type of the core: float, or double in the test-only
 * build that makes gradient checks sharp (OQ_DOUBLE). */
#ifndef OQ_BASE_REAL_H
#define OQ_BASE_REAL_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef OQ_DOUBLE
typedef double oq_real;
#define OQ_REAL_MIN_NORMAL DBL_MIN
#define oq_rint rint
#define oq_fabs fabs
#define oq_sqrt sqrt
#else
typedef float oq_real;
#define OQ_REAL_MIN_NORMAL FLT_MIN
#define oq_rint rintf
#define oq_fabs fabsf
#define oq_sqrt sqrtf
#endif

/* Hot elementwise loops are compiled once an ISA and chosen when the library
 * is loaded.  Sanitizers instrument the ifunc resolvers before they are ready,
 * so those builds get the plain version. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && !defined(OQ_NO_CLONES)
#define OQ_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define OQ_VECTORIZED
#endif

/* What hot loops call: left outside, a function would be compiled for the plainest ISA alone. */
#if defined(__GNUC__)
#define OQ_INLINE static inline __attribute__((always_inline))
#else
#define OQ_INLINE static inline
#endif

static inline oq_real oq_min(oq_real a, oq_real b) { return a < b ? a : b; }
static inline oq_real oq_max(oq_real a, oq_real b) { return a > b ? a : b; }

#endif
