/* Memory that a thread keeps from call to call and gives back when it ends. */
#ifndef OQ_BASE_SCRATCH_H
#define OQ_BASE_SCRATCH_H

#include <stddef.h>

/* At least so many bytes in large pages, uninitialised, until the thread's next call; NULL when out of memory. */
void *oq_scratch(size_t bytes);

#ifndef _WIN32
#include <pthread.h>

/* So many bytes of the thread, zeros at first, under a key whose destructor frees them; NULL when out of memory. */
void *oq_thread_kept(pthread_key_t key, size_t bytes);
#endif

#endif
