"""How many threads to use when nobody says."""

from __future__ import annotations

import os

from omniquant.errors import ConfigError

_MAX_THREADS = 4096


def resolve_threads(threads: int | None) -> int:
    """Return `threads`, or for None what OMP_NUM_THREADS says, or the processors this process may use.

    Results never depend on the number.

    Raises
    ------
    ConfigError
        If `threads` is not a number from 1 to 4096.
    """
    if threads is None:
        wish = os.environ.get("OMP_NUM_THREADS", "")
        if wish.isdecimal() and 1 <= int(wish) <= _MAX_THREADS:
            return int(wish)
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
        return min(_MAX_THREADS, len(affinity(0)) if affinity else os.cpu_count() or 1)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS:
        raise ConfigError(f"threads {threads!r} is not a whole number from 1 to {_MAX_THREADS}")
    return threads
