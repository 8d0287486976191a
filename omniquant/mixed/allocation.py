"""Bits for every linear within a budget, and what they were chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from omniquant.checkpoint.fields import Fields
from omniquant.config import QuantConfig
from omniquant.config.scheme import FLOAT_BITS
from omniquant.errors import ConfigError
from omniquant.forward import I32, ForwardModel, Progress
from omniquant.mixed.knapsack import choose_bits
from omniquant.mixed.sensitivity import measure
from omniquant.models.spec import quantized_shapes

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

    def answers(self, average_bits: float, bits: tuple[int, ...], names: Sequence[str]) -> bool:
        """Whether this is about the same budget, candidates and linears."""
        return (self.average_bits, self.bits, set(self.costs)) == (average_bits, bits, set(names))

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
    known: Allocation | None = None,
    threads: int = 1,
    progress: Progress | None = None,
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
    known : Allocation, optional
        What the same call found before; it is not measured again.
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
    sizes = _sizes(model)
    fixed = dict(scheme.overrides)
    free = [name for name in sizes if name not in fixed]
    if not free:
        raise ConfigError("average_bits: overrides leave no linear to choose bits for")
    if known is not None and known.answers(average_bits, candidates, free):
        costs = known.costs
    else:
        quantized = [b for b in candidates if b < FLOAT_BITS]
        reference = min(quantized, key=lambda b: (abs(b - average_bits), b))
        found = measure(model, windows, scheme, candidates, reference, threads=threads, progress=progress)
        costs = {name: tuple(row) for name, row in zip(found.names, found.costs.tolist(), strict=True)}
    costs = {name: costs[name] for name in free}
    chosen = choose_bits(list(costs.values()), [sizes[name] for name in free], candidates, average_bits)
    own = {name: scheme.with_weights(candidates[i]) for name, i in zip(free, chosen.tolist(), strict=True)}
    own = fixed | {name: each for name, each in own.items() if each.uniform() != scheme.uniform()}
    mixed = replace(scheme, overrides=tuple((name, own[name]) for name in sizes if name in own))
    return mixed, Allocation(float(average_bits), candidates, costs)


def _sizes(model: ForwardModel) -> dict[str, int]:
    """Return the weights of every linear, by names such as "layers.0.q"."""
    shapes = quantized_shapes(model.spec)
    return {
        f"layers.{index}.{name}": rows * columns
        for index in range(model.num_layers)
        for name, (rows, columns) in shapes.items()
    }


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
