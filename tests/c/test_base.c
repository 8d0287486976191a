#include <stdint.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cpu.h"
#include "base/size.h"
#include "check.h"

static void sizes_are_checked(void) {
    size_t result = 77;
    CHECK(oq_size_mul(0, SIZE_MAX, &result) && result == 0);
    CHECK(oq_size_mul(SIZE_MAX, 1, &result) && result == SIZE_MAX);
    CHECK(oq_size_mul(SIZE_MAX / 3, 3, &result) && result == SIZE_MAX / 3 * 3);
    result = 77;
    CHECK(!oq_size_mul(SIZE_MAX / 3 + 1, 3, &result) && result == 77);
    CHECK(!oq_size_mul(SIZE_MAX, SIZE_MAX, &result) && result == 77);
    CHECK(!oq_size_add(SIZE_MAX, 1, &result) && result == 77);
    CHECK(!oq_size_align(SIZE_MAX - 62, 64, &result) && result == 77);
    CHECK(oq_size_add(SIZE_MAX - 1, 1, &result) && result == SIZE_MAX);
    CHECK(oq_size_align(SIZE_MAX - 63, 64, &result) && result == SIZE_MAX - 63);
    CHECK(oq_size_align(65, 64, &result) && result == 128);
    CHECK(oq_size_align(0, 64, &result) && result == 0);
}

static void the_hook_fails_the_call_asked_for(void) {
    for (size_t n = 1; n <= 3; ++n) {
        for (int persistent = 0; persistent <= 1; ++persistent) {
            oq_malloc_fail_at(n, persistent);
            for (size_t call = 1; call <= 5; ++call) {
                void *pointer = oq_malloc(10);
                CHECK((pointer == NULL) == (call == n || (persistent && call > n)));
                oq_free(pointer);
            }
            CHECK(oq_malloc_fail_at(0, false) == 5);
        }
    }
    void *pointer = oq_malloc(0);
    CHECK(pointer && (uintptr_t)pointer % 64 == 0);
    oq_free(pointer);
    oq_free(NULL);
    CHECK(!oq_malloc(SIZE_MAX));
}

static oq_code ask_for(oq_context *context, size_t count) {
    double *numbers;
    OQ_NEW_ZERO(context, numbers, count);
    return numbers[0] == 0 ? OQ_OK : OQ_BACKEND;
}

static oq_code hand_on(oq_context *context, size_t count) {
    OQ_TRY(ask_for(context, count));
    return OQ_OK;
}

static void errors_say_what(void) {
    oq_context context = new_context(1);
    char longer[1000];
    CHECK(oq_fail(&context, OQ_SINGULAR, "row %d is %g", 3, 0.5) == OQ_SINGULAR);
    CHECK(context.error.code == OQ_SINGULAR && strcmp(context.error.message, "row 3 is 0.5") == 0);
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    oq_fail(&context, OQ_BACKEND, "%s", longer);
    CHECK(strlen(context.error.message) == sizeof context.error.message - 1);
    CHECK(hand_on(&context, 10) == OQ_OK);
    CHECK(hand_on(&context, SIZE_MAX / 4) == OQ_OUT_OF_MEMORY && context.error.code == OQ_OUT_OF_MEMORY);
    CHECK(strstr(context.error.message, "elements of 8 bytes"));
    oq_arena_destroy(context.arena);
}

static void cancelling(void) {
    volatile int flag = 0;
    oq_context context = new_context(1);
    CHECK(oq_check_cancel(&context) == OQ_OK);
    context.cancel = &flag;
    CHECK(oq_check_cancel(&context) == OQ_OK);
    flag = 1;
    CHECK(oq_check_cancel(&context) == OQ_CANCELLED && context.error.code == OQ_CANCELLED);
    oq_arena_destroy(context.arena);
}

static void processor_names_match_flags(void) {
    const oq_cpu *cpu = oq_cpu_features();
    CHECK(cpu->avx2 == (strstr(oq_cpu_names(), "avx2") != NULL));
    CHECK(cpu->avx512_vnni == (strstr(oq_cpu_names(), "avx512_vnni") != NULL));
    CHECK(!cpu->avx512_vnni || cpu->avx512f);
}

void test_base(void) {
    sizes_are_checked();
    the_hook_fails_the_call_asked_for();
    errors_say_what();
    cancelling();
    processor_names_match_flags();
}
