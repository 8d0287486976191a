"""What a number of right answers says: standard error, intervals, and the comparison of two models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_Z = 1.959963984540054  # 95 % of a normal distribution lie within

Right = npt.NDArray[np.bool_]  # [questions]


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers.

    Parameters
    ----------
    value : float
    stderr : float
        Sample standard deviation over the root of their number, as lm-eval prints it; NaN of one question.
    low, high : float
        Wilson's score interval, 95 %.
    """

    value: float
    stderr: float
    low: float
    high: float

    @classmethod
    def of(cls, right: Right) -> Accuracy:
        """Return the share of right answers [n]."""
        n, share = len(right), float(right.mean())
        low, high = wilson(int(right.sum()), n)
        return cls(share, _stderr(right.astype(np.float64)), low, high)

    def to_dict(self, name: str) -> dict[str, Any]:
        """Return "acc", "acc_stderr" and "acc_interval" for the name "acc"."""
        return {name: self.value, f"{name}_stderr": self.stderr, f"{name}_interval": [self.low, self.high]}


@dataclass(frozen=True)
class Difference:
    """One model against another on the same questions.

    Parameters
    ----------
    value : float
        Share of the first minus share of the second.
    stderr : float
        Of the mean of the paired differences.
    low, high : float
        95 % interval, value plus and minus 1.96 stderr.
    gained, lost : int
        Questions the first alone has right, and the second alone.
    flips : float
        The share of both among all (arXiv 2407.09141): how often an answer turned right or wrong, which equal
        accuracies do not tell.
    p_value : float
        Two-sided exact McNemar test: how likely the split of those is if neither model is better.
    """

    value: float
    stderr: float
    low: float
    high: float
    gained: int
    lost: int
    flips: float
    p_value: float

    @classmethod
    def of(cls, first: Right, second: Right) -> Difference:
        """Compare right answers [n] with right answers [n]."""
        paired = first.astype(np.float64) - second.astype(np.float64)
        value, stderr = float(paired.mean()), _stderr(paired)
        gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
        reach, flips = _Z * stderr, (gained + lost) / len(paired)
        return cls(value, stderr, value - reach, value + reach, gained, lost, flips, mcnemar(gained, lost))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {
            "difference": self.value,
            "stderr": self.stderr,
            "interval": [self.low, self.high],
            "gained": self.gained,
            "lost": self.lost,
            "flips": self.flips,
            "p_value": self.p_value,
        }


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of `right` out of `n` (Wilson, 1927)."""
    share, z2 = right / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p-value of McNemar's test: a fair coin thrown gained + lost times."""
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))  # exact, in integers of any size
    return min(1.0, 2 * tail / (1 << n))


def mean_of(values: list[float], stderrs: list[float]) -> dict[str, Any]:
    """Return the plain mean over tasks, its standard error and 95 % interval; tasks are independent."""
    value = float(np.mean(values))
    stderr = math.sqrt(sum(s * s for s in stderrs)) / len(stderrs)
    return {"value": value, "stderr": stderr, "interval": [value - _Z * stderr, value + _Z * stderr]}


def _stderr(values: npt.NDArray[np.float64]) -> float:
    n = len(values)
    return float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
