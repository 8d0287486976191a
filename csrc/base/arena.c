#include "base/arena.h"

#include <string.h>

#include "base/alloc.h"
#include "base/size.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(start, bytes) ASAN_POISON_MEMORY_REGION((start), (bytes))
#define UNPOISON(start, bytes) ASAN_UNPOISON_MEMORY_REGION((start), (bytes))
enum { GAP = 64 };
#else
#define POISON(start, bytes) ((void)(start), (void)(bytes))
#define UNPOISON(start, bytes) ((void)(start), (void)(bytes))
enum { GAP = 0 };
#endif

enum { ALIGNMENT = 64 };

static const size_t FIRST_CHUNK = (size_t)1 << 18;  /* 256 KiB */
static const size_t LARGEST_STEP = (size_t)1 << 26; /* chunks stop doubling at 64 MiB */

/*   [ header, 64 bytes | capacity bytes of data ]   */
typedef struct chunk {
    struct chunk *next;
    size_t capacity;
    size_t before; /* bytes in use in the chunks to its left */
} chunk;

struct oq_arena {
    chunk *first;
    chunk *top;  /* NULL: nothing in use */
    size_t used; /* of top */
    size_t peak;
};

static unsigned char *data_of(chunk *block) { return (unsigned char *)block + ALIGNMENT; }

static void free_chain(chunk *block)
{
    while (block) {
        chunk *next = block->next;
        UNPOISON(data_of(block), block->capacity);
        oq_free(block);
        block = next;
    }
}

oq_arena *oq_arena_create(void)
{
    oq_arena *arena = oq_malloc(sizeof *arena);
    if (arena) memset(arena, 0, sizeof *arena);
    return arena;
}

void oq_arena_destroy(oq_arena *arena)
{
    if (!arena) return;
    free_chain(arena->first);
    oq_free(arena);
}

/* Chunks double, so a call needs few of them however much it takes. */
static chunk *new_chunk(size_t needed, const chunk *left)
{
    size_t capacity = left ? left->capacity : FIRST_CHUNK / 2;
    size_t total;
    capacity = capacity > LARGEST_STEP / 2 ? LARGEST_STEP : capacity * 2;
    if (capacity < needed) capacity = needed;
    if (!oq_size_add(capacity, ALIGNMENT, &total)) return NULL;
    chunk *block = oq_malloc(total);
    if (!block) return NULL;
    block->next = NULL;
    block->capacity = capacity;
    block->before = 0;
    POISON(data_of(block), capacity);
    return block;
}

/* Make the next chunk the top one: the one kept from earlier use if it is large
 * enough, else a new one in place of all that lie right of the top. */
static chunk *advance(oq_arena *arena, size_t needed)
{
    chunk **link = arena->top ? &arena->top->next : &arena->first;
    if (!*link || (*link)->capacity < needed) {
        chunk *block = new_chunk(needed, arena->top);
        if (!block) return NULL;
        free_chain(*link);
        *link = block;
    }
    (*link)->before = arena->top ? arena->top->before + arena->used : 0;
    arena->top = *link;
    arena->used = 0;
    return arena->top;
}

void *oq_arena_alloc(oq_arena *arena, size_t count, size_t size)
{
    size_t bytes, needed;
    if (!oq_size_mul(count, size, &bytes)) return NULL;
    if (!oq_size_align(bytes ? bytes : 1, ALIGNMENT, &needed)) return NULL;
    if (!oq_size_add(needed, GAP, &needed)) return NULL;
    if (!arena->top || arena->top->capacity - arena->used < needed) {
        if (!advance(arena, needed)) return NULL;
    }
    unsigned char *pointer = data_of(arena->top) + arena->used;
    arena->used += needed;
    if (arena->top->before + arena->used > arena->peak) arena->peak = arena->top->before + arena->used;
    UNPOISON(pointer, bytes);
    return pointer;
}

void *oq_arena_zeroed(oq_arena *arena, size_t count, size_t size)
{
    void *pointer = oq_arena_alloc(arena, count, size);
    if (pointer) memset(pointer, 0, count * size); /* the product was checked by oq_arena_alloc */
    return pointer;
}

oq_mark oq_arena_mark(const oq_arena *arena) { return (oq_mark){.chunk = arena->top, .used = arena->used}; }

void oq_arena_rewind(oq_arena *arena, oq_mark mark)
{
    arena->top = mark.chunk;
    arena->used = mark.chunk ? mark.used : 0;
    chunk *block = arena->top ? arena->top : arena->first;
    size_t keep = arena->used;
    for (; block; block = block->next, keep = 0) POISON(data_of(block) + keep, block->capacity - keep);
}

size_t oq_arena_peak(const oq_arena *arena) { return arena->peak; }
