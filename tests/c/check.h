/* A failed check says where and goes on; main returns how many failed. */
#ifndef OQ_TESTS_CHECK_H
#define OQ_TESTS_CHECK_H

#include <stdio.h>

#include "base/context.h"

extern int failed_checks;

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            ++failed_checks;                                                      \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);        \
        }                                                                         \
    } while (0)

static inline oq_context new_context(int threads) {
    return (oq_context){.arena = oq_arena_create(), .threads = threads};
}

/* One a file of tests. */
void test_arena(void);
void test_base(void);
void test_byte_gradients(void);
void test_parallel(void);
void test_products(void);
void test_igemm(void);
void test_inverse(void);
void test_kernels(void);
void test_scaling(void);

#endif
