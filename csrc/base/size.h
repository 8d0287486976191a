/* The one place where sizes are multiplied and added, checked, and cut to what is left. */
#ifndef OQ_BASE_SIZE_H
#define OQ_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* false on overflow; *result is then untouched. */
bool oq_size_mul(size_t a, size_t b, size_t *result);
bool oq_size_add(size_t a, size_t b, size_t *result);
/* n rounded up to a multiple of alignment, a power of two. */
bool oq_size_align(size_t n, size_t alignment, size_t *result);

/* A place behind a pointer that may be NULL, and stays it. */
#define OQ_AT(pointer, offset) ((pointer) ? (pointer) + (offset) : NULL)

static inline int64_t oq_least(int64_t a, int64_t b) { return a < b ? a : b; }
/* Pieces of a length, the last of which may be shorter. */
static inline int64_t oq_pieces(int64_t length, int64_t each) { return (length + each - 1) / each; }

#endif
