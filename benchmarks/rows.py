"""What rows of tables of accuracy say alike."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from omniquant.calibration import CalibrationResult
from omniquant.describe import bits_per_weight, describe_maps


def spread(values: Sequence[float], digits: str) -> str:
    """Return the mean, and the range where there is one."""
    ends = f" ({min(values):{digits}}-{max(values):{digits}})" if values[1:] else ""
    return f"{fmean(values):{digits}}{ends}"


def price(result: CalibrationResult) -> str:
    """Return two cells: bits a weight, and multiply-adds a token and block that are added at run time."""
    spec = result.fold().spec
    bits = bits_per_weight(result.scheme, spec, result.header.num_layers)
    added = sum(entry.multiply_adds for entry in describe_maps(result.options, spec))
    return f"{bits:.2f} | {f'{added:,}' if added else 'nothing'}"
