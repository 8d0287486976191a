"""The multiple-choice knapsack: one number of bits for each linear, least cost within a budget of bits."""

from __future__ import annotations

from math import floor, gcd, isfinite

import numpy as np
import numpy.typing as npt

from omniquant.errors import ConfigError

_MOST_CELLS = 1 << 31  # a byte each


def choose_bits(
    costs: npt.ArrayLike, sizes: npt.ArrayLike, bits: npt.ArrayLike, average_bits: float
) -> npt.NDArray[np.int64]:
    """Solve the allocation exactly, by dynamic programming over the bits spent so far.

    The budget is counted in the greatest common divisor of what a linear may take more than the least, so
    nothing is rounded: the sizes of a model's linears have large common factors.

    Parameters
    ----------
    costs : array_like [n, m]
        Of linear i at the j-th number of bits; costs add up.
    sizes : array_like of int [n]
        Weights of a linear.
    bits : array_like of int [m]
        In increasing order.
    average_bits : float
        sum(sizes * chosen bits) is at most this times sum(sizes).

    Returns
    -------
    ndarray of int64 [n]
        Indices into `bits` of least total cost.

    Raises
    ------
    ConfigError
        If the budget is below the fewest bits, or the table of the dynamic programme would not fit.
    ValueError
        If a cost is not finite or the shapes do not fit.
    """
    cost = np.asarray(costs, np.float64)
    size, width = [int(s) for s in np.asarray(sizes)], [int(b) for b in np.asarray(bits)]
    if cost.shape != (len(size), len(width)) or not size or not width or width != sorted(set(width)):
        raise ValueError(f"costs {list(cost.shape)} of {len(size)} linears at {width} bits")
    if not np.isfinite(cost).all() or not isfinite(average_bits):
        raise ValueError("costs and average_bits must be finite")
    total = sum(size)
    # Beyond what everything at the fewest bits takes; a hair of slack for averages such as 3.1.
    budget = floor(average_bits * total + 1e-9 * total) - width[0] * total
    if budget < 0:
        raise ConfigError(f"{average_bits:g} bits on average: the fewest are {width[0]}")
    unit = gcd(*(s * (b - width[0]) for s in size for b in width)) or 1
    more = [[s * (b - width[0]) // unit for b in width] for s in size]
    capacity = min(budget // unit, sum(row[-1] for row in more))
    if (capacity + 1) * len(size) > _MOST_CELLS:
        raise ConfigError(
            f"{len(size)} linears whose sizes have {unit} in common: too many allocations; use fewer bits"
        )
    return _backtrack(_table(cost, more, capacity), more, capacity)


def _table(cost: npt.NDArray[np.float64], more: list[list[int]], capacity: int) -> npt.NDArray[np.uint8]:
    """Return, of each linear and each number of units spent up to it, the choice that costs least."""
    best = np.zeros(capacity + 1)  # of the linears so far, within so many units
    choice = np.zeros((len(more), capacity + 1), np.uint8)
    for i, row in enumerate(more):
        found = best + cost[i, 0]
        for j, units in enumerate(row[1:], 1):
            if units > capacity:
                break
            candidate = best[: capacity + 1 - units] + cost[i, j]
            better = candidate < found[units:]
            found[units:][better] = candidate[better]
            choice[i, units:][better] = j
        best = found
    return choice


def _backtrack(choice: npt.NDArray[np.uint8], more: list[list[int]], capacity: int) -> npt.NDArray[np.int64]:
    chosen = np.zeros(len(more), np.int64)
    left = capacity
    for i in range(len(more) - 1, -1, -1):
        chosen[i] = choice[i, left]
        left -= more[i][chosen[i]]
    return chosen
