/* Memory that a thread keeps from call to call and gives back when it ends. */
#ifndef OQ_BASE_SCRATCH_H
#define OQ_BASE_SCRATCH_H

#include <stddef.h>

/* At least so many bytes in large pages, uninitialised, until the thread's next call; NULL when out of memory. */
void *oq_scratch(size_t bytes);

#endif
