/* The one use of OpenMP.  Work is cut into items whose number depends on the
 * problem alone, never on the threads, so results are the same bits at 1, 2 or
 * 64 threads. */
#ifndef OQ_BASE_PARALLEL_H
#define OQ_BASE_PARALLEL_H

#include <stdint.h>

/* body(user, item, worker): item in 0..count-1, worker in 0..threads-1 (an index
 * for scratch memory a worker; it must not influence results).  Nested calls
 * run serially. */
typedef void (*oq_parallel_body)(void *user, int64_t item, int worker);
void oq_parallel_for(int threads, int64_t count, oq_parallel_body body, void *user);

/* lead(user) on the calling thread while threads - 1 others stand ready, awake: for many short loops in a row.
 * oq_parallel_for inside it uses them, with the same items and results. */
void oq_parallel_team(int threads, void (*lead)(void *user), void *user);

/* Threads OpenMP would use by default (1 without OpenMP). */
int oq_parallel_default_threads(void);

#endif
