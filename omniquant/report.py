"""What is known about a calibrated block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError, NotFiniteError

# Of csrc/calibrate/starved.h: what an expert must see to be trained.
LEAST_TOKENS = 32


@dataclass(frozen=True)
class BlockReport:
    """Losses, margins and counts of one block.

    Parameters
    ----------
    index : int
    loss_rtn, loss_initial, loss_final : float
        Mean loss over the calibration windows (32, where there are more) of plain rounding, of the start and
        of what was kept, the auxiliary term included where it is on.
    kept : str
        "final", "best" (iterate), "initial" or "rtn": training never returns anything worse than its start;
        "gptq": error feedback on top lowered the loss.
    steps, rows_projected, steps_rejected : int
        Optimiser steps; rows brought back to dominance; steps undone.
    sinks : int
        Tokens of the calibration whose state in the original model is massive behind this block: mean squares
        a hundred times the median of their window.
    min_margin : float or None
        Smallest margin |a_ii| - sum of |a_ij| of the affine maps; None where there are none.
    max_condition, varah_bound : float or None
        Largest condition number of the maps, and Varah's bound 1 / min margin on their inverses' norm.
    worst_row : str
        Where the smallest margin is, such as "qk_map head 3 row 5".
    trace : tuple of float
        Mean training loss of each epoch.
    expert_tokens : tuple of int
        Tokens of the calibration each expert sees in the original model; empty where there are no experts.
        Those with fewer than :data:`LEAST_TOKENS` are not trained: see :attr:`starved`.
    seconds : float
        Time the block took, forward passes included; not part of the saved state.
    """

    index: int
    loss_rtn: float
    loss_initial: float
    loss_final: float
    kept: str = "final"
    steps: int = 0
    rows_projected: int = 0
    steps_rejected: int = 0
    sinks: int = 0
    min_margin: float | None = None
    max_condition: float | None = None
    varah_bound: float | None = None
    worst_row: str = ""
    trace: tuple[float, ...] = ()
    expert_tokens: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def starved(self) -> tuple[int, ...]:
        """Experts with too few tokens to learn from.

        Where a method clips weights, their clipping is searched on the weights alone, and stays; nothing else
        of theirs is trained. Plain rounding, kept "rtn", clips nothing.
        """
        return tuple(i for i, tokens in enumerate(self.expert_tokens) if tokens < LEAST_TOKENS)

    @classmethod
    def from_core(cls, index: int, result: Mapping[str, Any], seconds: float) -> BlockReport:
        """Read the dict of ``_core.calibrate_block``."""
        names = {field.name for field in fields(cls)} - {"index", "seconds", "trace", "expert_tokens"}
        values = {name: _plain(result[name]) for name in names}
        for name in ("loss_rtn", "loss_initial", "loss_final"):
            if values[name] is None:
                raise NotFiniteError(f"block {index}: {name} is {result[name]}")
        trace = tuple(float(v) for v in result["trace"])
        tokens = tuple(int(v) for v in result["expert_tokens"])
        return cls(index=index, seconds=seconds, trace=trace, expert_tokens=tokens, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        values = asdict(self) | {"trace": list(self.trace), "expert_tokens": list(self.expert_tokens)}
        if not self.expert_tokens:
            del values["expert_tokens"]
        return values

    def durable(self) -> dict[str, Any]:
        """Return the fields that depend on model, data and configuration alone, not on the clock."""
        return {name: value for name, value in self.to_dict().items() if name != "seconds"}

    @classmethod
    def from_dict(cls, values: object, where: str) -> BlockReport:
        """Read what :meth:`durable` wrote; CheckpointError names the field that does not fit."""
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: report is no object")
        kinds: dict[str, tuple[type, ...]] = {
            field.name: _KINDS[field.type if isinstance(field.type, str) else field.type.__name__]
            for field in fields(cls)
            if field.name != "seconds"
        }
        # Blocks without experts do not write them, nor did anyone write sinks once.
        values = dict[str, Any]({"expert_tokens": [], "sinks": 0} | values)
        if set(values) != set(kinds):
            odd = sorted(set(values) ^ set(kinds))[0]
            raise CheckpointError(
                f"{where}: report field {odd!r} is {'missing' if odd in kinds else 'unknown'}"
            )
        for name, kind in kinds.items():
            if not isinstance(values[name], kind) or isinstance(values[name], bool):
                raise CheckpointError(f"{where}: report field {name!r} is {shown(values[name])}")
        if not all(isinstance(loss, (int, float)) for loss in values["trace"]):
            raise CheckpointError(f"{where}: report field 'trace' holds something else than numbers")
        if not all(isinstance(tokens, int) for tokens in values["expert_tokens"]):
            raise CheckpointError(f"{where}: report field 'expert_tokens' holds something else than integers")
        lists = {name: tuple(values[name]) for name in ("trace", "expert_tokens")}
        return cls(**(values | lists))


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "float | None": (int, float, type(None)),
    "tuple[float, ...]": (list,),
    "tuple[int, ...]": (list,),
}


def _plain(value: Any) -> Any:
    """NumPy scalars to Python's, and what JSON cannot hold (NaN, infinity) to None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
