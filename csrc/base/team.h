/* Jobs for threads that stand ready: handing one out costs about a microsecond where waking a sleeping thread
 * costs tens.  One leader posts a job and works on it too; the others take items until the team is closed. */
#ifndef OQ_BASE_TEAM_H
#define OQ_BASE_TEAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/parallel.h"

/* ticket = generation << 32 | items not yet taken.  The other fields change only while no item is left, so a
 * ticket that could be swapped proves that what was read of them before was still meant. */
typedef struct {
    _Atomic uint64_t ticket;
    _Atomic int64_t count, done;
    _Atomic(oq_parallel_body) body;
    _Atomic(void *) user;
    atomic_int workers; /* of this job: those with a smaller number */
    atomic_bool closed;
} oq_team;

void oq_team_open(oq_team *team);
/* The leader, worker 0: returns when every item is done. 0 <= count < 2^31. */
void oq_team_run(oq_team *team, int workers, int64_t count, oq_parallel_body body, void *user);
/* Everyone else: returns when the team is closed. */
void oq_team_serve(oq_team *team, int worker);
void oq_team_close(oq_team *team);

#endif
