#include <stdint.h>
#include <string.h>

#include "base/alloc.h"
#include "check.h"

static void blocks_are_aligned_and_apart(void) {
    enum { COUNT = 200 };
    unsigned char *blocks[COUNT];
    oq_arena *arena = oq_arena_create();
    for (size_t i = 0; i < COUNT; ++i) {
        blocks[i] = oq_arena_alloc(arena, i * 37, 1);
        CHECK(blocks[i] && (uintptr_t)blocks[i] % 64 == 0);
        memset(blocks[i], (int)i, i * 37);
    }
    for (size_t i = 0; i < COUNT; ++i) {
        for (size_t j = 0; j < i * 37; ++j) CHECK(blocks[i][j] == (unsigned char)i);
    }
    oq_arena_destroy(arena);
}

static void rewinding_gives_the_same_memory_again(void) {
    oq_arena *arena = oq_arena_create();
    char *kept = oq_arena_alloc(arena, 100, 1);
    const oq_mark mark = oq_arena_mark(arena);
    memset(kept, 7, 100);
    char *first = oq_arena_alloc(arena, 1000, 8), *large = oq_arena_alloc(arena, 10000000, 1);
    memset(large, 1, 10000000);
    const size_t peak = oq_arena_peak(arena);
    CHECK(peak >= 100 + 8000 + 10000000 && peak < 10100000);
    oq_malloc_fail_at(0, false);
    for (int i = 0; i < 100; ++i) {
        oq_arena_rewind(arena, mark);
        CHECK(oq_arena_alloc(arena, 1000, 8) == first);
        CHECK(oq_arena_alloc(arena, 10000000, 1) == large);
    }
    CHECK(oq_malloc_fail_at(0, false) == 0); /* nothing was taken from the system */
    CHECK(oq_arena_peak(arena) == peak);
    CHECK(kept[0] == 7 && kept[99] == 7);
    oq_arena_destroy(arena);
}

static void rewinding_to_the_very_start(void) {
    oq_arena *arena = oq_arena_create();
    const oq_mark start = oq_arena_mark(arena);
    void *first = oq_arena_alloc(arena, 10, 10);
    oq_arena_rewind(arena, start);
    oq_arena_rewind(arena, start);
    CHECK(oq_arena_alloc(arena, 1, 1) == first);
    oq_arena_rewind(arena, start);
    CHECK(oq_arena_alloc(arena, 1, 100000000)); /* too large for the chunk kept: another takes its place */
    oq_arena_destroy(arena);
}

static void zeroed_is_zeroed_on_used_memory(void) {
    oq_arena *arena = oq_arena_create();
    const oq_mark start = oq_arena_mark(arena);
    memset(oq_arena_alloc(arena, 1000, 1), 255, 1000);
    oq_arena_rewind(arena, start);
    const unsigned char *zeros = oq_arena_zeroed(arena, 100, 10);
    for (int i = 0; i < 1000; ++i) CHECK(zeros[i] == 0);
    oq_arena_destroy(arena);
}

static void impossible_sizes_give_null(void) {
    oq_arena *arena = oq_arena_create();
    const size_t peak = oq_arena_peak(arena);
    CHECK(!oq_arena_alloc(arena, SIZE_MAX, 2));
    CHECK(!oq_arena_alloc(arena, SIZE_MAX / 8 + 1, 8));
    CHECK(!oq_arena_alloc(arena, SIZE_MAX, 1));
    CHECK(!oq_arena_alloc(arena, SIZE_MAX - 64, 1));
    CHECK(!oq_arena_zeroed(arena, SIZE_MAX - 200, 1));
    CHECK(oq_arena_peak(arena) == peak);
    CHECK(oq_arena_alloc(arena, 0, 8) && oq_arena_alloc(arena, 8, 0));
    oq_arena_destroy(arena);
}

static void a_failed_chunk_leaves_the_arena_usable(void) {
    oq_malloc_fail_at(1, false);
    CHECK(!oq_arena_create());
    oq_arena *arena = oq_arena_create();
    char *small = oq_arena_alloc(arena, 1, 1);
    oq_malloc_fail_at(1, false);
    CHECK(!oq_arena_alloc(arena, 50000000, 1));
    CHECK(oq_arena_alloc(arena, 1, 1) == (void *)(small + 64) || oq_arena_peak(arena) > 128);
    CHECK(oq_arena_alloc(arena, 50000000, 1));
    oq_malloc_fail_at(0, false);
    oq_arena_destroy(arena);
    oq_arena_destroy(NULL);
}

void test_arena(void) {
    blocks_are_aligned_and_apart();
    rewinding_gives_the_same_memory_again();
    rewinding_to_the_very_start();
    zeroed_is_zeroed_on_used_memory();
    impossible_sizes_give_null();
    a_failed_chunk_leaves_the_arena_usable();
}
