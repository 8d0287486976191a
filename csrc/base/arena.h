/* Scratch memory: a 64-byte aligned bump allocator over a chain of chunks.
 *
 *   chunk 0 [ a | b | c ....... ] -> chunk 1 [ d | e .......... ] -> ...
 *                                                  ^ top
 * Cleaning up is rewinding to a mark; chunks are kept for the next use. */
#ifndef OQ_BASE_ARENA_H
#define OQ_BASE_ARENA_H

#include <stddef.h>

typedef struct oq_arena oq_arena;

typedef struct {
    void *chunk; /* NULL: before the first chunk */
    size_t used;
} oq_mark;

oq_arena *oq_arena_create(void); /* NULL: out of memory */
void oq_arena_destroy(oq_arena *arena);

/* NULL when count * size overflows or memory is out. A count of 0 gives a
 * valid pointer to nothing. */
void *oq_arena_alloc(oq_arena *arena, size_t count, size_t size);
void *oq_arena_zeroed(oq_arena *arena, size_t count, size_t size);

oq_mark oq_arena_mark(const oq_arena *arena);
void oq_arena_rewind(oq_arena *arena, oq_mark mark);

/* Largest number of bytes ever in use, for reports. */
size_t oq_arena_peak(const oq_arena *arena);

#endif
