/* Hints to the system about memory that is a read-only, shared mapping of a file. */
#ifndef OQ_BASE_PAGES_H
#define OQ_BASE_PAGES_H

#include <stddef.h>

/* These bytes are needed soon: their pages may be read from the file meanwhile. */
void oq_pages_want(const void *start, size_t bytes);
/* These bytes are not needed for now: their pages leave this process and come back from the file when touched.
 * Never for memory of another kind, which would lose what it holds. */
void oq_pages_drop(const void *start, size_t bytes);

#endif
