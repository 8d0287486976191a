"""Bits for every linear within a budget, and what they were chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omniquant.checkpoint.fields import Fields
from omniquant.config import QuantConfig
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import ConfigError
from omniquant.forward import I32, ForwardModel
from omniquant.mixed.knapsack import choose_bits
from omniquant.mixed.sensitivity import Sensitivity, measure

CANDIDATE_BITS = (2, 3, 4, 8)
_POSSIBLE = (*range(2, 9), FLOAT_BITS)


@dataclass(frozen=True)
class Allocation:
    """What a budget was spent by.

    Parameters
    ----------
    average_bits : float
        The budget, a weight; scales and zero points come on top.
    bits : tuple of int
        The candidates, [m].
    costs : dict of str to tuple of float
        Of each linear that was free, by name: its estimated divergence at each candidate, [m].
    """

    average_bits: float
    bits: tuple[int, ...]
    costs: dict[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {
            "average_bits": self.average_bits,
            "bits": list(self.bits),
            "costs": {name: list(costs) for name, costs in self.costs.items()},
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Allocation:
        """Read what :meth:`to_dict` wrote, which nobody vouches for; CheckpointError names what is wrong."""
        costs = fields.section("costs")
        if costs is None:
            raise fields.fail("costs", "an object")
        bits = _numbers(fields, "bits")
        if any(b not in _POSSIBLE for b in bits):
            raise fields.fail("bits", "a list of 2 to 8 and 16")
        found = {name: _numbers(costs, name) for name in costs.values}
        for name, values in found.items():
            if len(values) != len(bits):
                raise costs.fail(name, f"{len(bits)} numbers")
        return cls(fields.positive("average_bits"), tuple(int(b) for b in bits), found)


def _numbers(fields: Fields, name: str) -> tuple[float, ...]:
    values = fields.values.get(name)
    numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300
        for value in values
    )
    if not numbers or not values:
        raise fields.fail(name, "a list of numbers of at least 0")
    return tuple(values)  # type: ignore[arg-type]


def allocate(
    model: ForwardModel,
    windows: I32,
    scheme: QuantConfig,
    average_bits: float,
    bits: Sequence[int] = CANDIDATE_BITS,
    *,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[QuantConfig, Allocation]:
    """Measure every linear and return the scheme with the best bits for each, within a budget.

    Parameters
    ----------
    model : Model
    windows : ndarray of int32 [N, T]
        Calibration tokens.
    scheme : QuantConfig
        Groups, symmetry and activations of all; linears with overrides keep theirs and are left out of the
        average.
    average_bits : float
        At most so many bits a weight, scales and zero points not counted.
    bits : sequence of int
        To choose from: 2 to 8, or 16 for float.
    threads : int
    progress : callable, optional
        Called with (blocks done, blocks).

    Returns
    -------
    (QuantConfig, Allocation)

    Raises
    ------
    ConfigError
        If the candidates make no sense, the budget is below the fewest bits, or nothing is left to choose.
    """
    candidates = check_candidates(average_bits, bits)
    fixed = dict(scheme.overrides)
    quantized = [b for b in candidates if b < FLOAT_BITS]
    reference = min(quantized, key=lambda b: (abs(b - average_bits), b))
    found = measure(model, windows, scheme, candidates, reference, threads=threads, progress=progress)
    free = [i for i, name in enumerate(found.names) if name not in fixed]
    if not free:
        raise ConfigError("average_bits: overrides leave no linear to choose bits for")
    chosen = choose_bits(found.costs[free], np.array(found.sizes)[free], candidates, average_bits)
    return _with_bits(scheme, found, free, chosen.tolist()), Allocation(
        float(average_bits), candidates, {found.names[i]: tuple(found.costs[i].tolist()) for i in free}
    )


def check_candidates(average_bits: float, bits: Sequence[int]) -> tuple[int, ...]:
    """Return the candidates in order; ConfigError where they or the budget make no sense."""
    candidates = tuple(sorted(set(bits)))
    if not candidates or any(isinstance(b, bool) or b not in _POSSIBLE for b in candidates):
        raise ConfigError(f"candidate bits {list(bits)}: expected 2 to 8, or 16 for float")
    if candidates[0] >= FLOAT_BITS:
        raise ConfigError("candidate bits: at least one below 16 is needed")
    if not candidates[0] <= average_bits <= candidates[-1]:
        raise ConfigError(
            f"{average_bits:g} bits on average lie outside the candidates {', '.join(map(str, candidates))}"
        )
    return candidates


def _with_bits(scheme: QuantConfig, found: Sensitivity, free: list[int], chosen: list[int]) -> QuantConfig:
    own = dict(scheme.overrides)
    for i, choice in zip(free, chosen, strict=True):
        wanted = scheme.with_weights(found.bits[choice])
        if wanted.uniform() != scheme.uniform():
            own[found.names[i]] = wanted
    ordered = tuple((name, own[name]) for name in found.names if name in own)
    return replace(scheme, overrides=ordered)
