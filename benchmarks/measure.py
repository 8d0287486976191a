"""Contenders side by side, each in turn, so that a busy machine is unfair to nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from itertools import cycle
from statistics import median

import numpy as np

Call = Callable[[], object]


class Contender:
    """Calls that do the same with weights of their own, so that none are still in the cache."""

    def __init__(self, calls: list[Call]) -> None:
        self.turns = len(calls)
        self.times: list[float] = []
        self._calls = cycle(calls)

    def __call__(self) -> object:
        return next(self._calls)()

    def turn(self) -> None:
        """Time a round of calls; one before is not timed: others' threads fall asleep meanwhile."""
        self()
        start = time.perf_counter()
        for _ in range(self.turns):
            self()
        self.times.append((time.perf_counter() - start) / self.turns)


def interleaved(contenders: Mapping[str, Contender], seconds: float) -> dict[str, float]:
    """Return the median seconds of a call of each: turn by turn for so long, at least five turns."""
    for contender in contenders.values():
        contender.turn()
        contender.times.clear()
    end = time.perf_counter() + seconds
    first = next(iter(contenders.values()))
    while time.perf_counter() < end or len(first.times) < 5:
        for contender in contenders.values():
            contender.turn()
    return {name: median(contender.times) for name, contender in contenders.items()}


def memory_reader(threads: int, size: int = 128 << 20) -> tuple[Call, int]:
    """Return a call that reads so many bytes, each thread a part: what memory gives is measured by it."""
    parts = [np.ones(size // threads // 8, dtype=np.int64) for _ in range(threads)]

    def read() -> None:
        others = [threading.Thread(target=part.max) for part in parts[1:]]
        for thread in others:
            thread.start()
        parts[0].max()
        for thread in others:
            thread.join()

    return read, sum(part.nbytes for part in parts)
