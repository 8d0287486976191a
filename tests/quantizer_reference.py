"""The quantizer in NumPy and float64, group by group: what the core is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quantizer:
    """The arguments of fake_quantize."""

    bits: int
    group_size: int = 0
    symmetric: bool = False
    full_range: bool = False

    def arguments(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def top(self) -> int:
        return 2**self.bits - 1

    @property
    def steps(self) -> float:
        """Steps from 0 to the largest magnitude of a symmetric grid."""
        return self.top / 2 if self.full_range else 2 ** (self.bits - 1) - 1

    def groups(self, width: int) -> list[slice]:
        size = self.group_size or max(width, 1)
        return [slice(start, min(start + size, width)) for start in range(0, width, size)]

    def grid(self, lo: float, hi: float) -> tuple[float, float]:
        """Return (h, z) of a range."""
        h = max(-lo, hi) / self.steps if self.symmetric else (hi - lo) / self.top
        h = h or 1.0
        zero = 2 ** (self.bits - 1) if self.symmetric else np.clip(np.rint(-lo / h), 0, self.top)
        return h, float(zero)


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def forward(quantizer: Quantizer, x: F64, max_logit: F64 | None = None, min_logit: F64 | None = None) -> F64:
    """Return fake_quantize of rows x [N, K]."""
    out = np.empty_like(x)
    for row in range(len(x)):
        for k, part in enumerate(quantizer.groups(x.shape[1])):
            values = x[row, part]
            lo, hi = min(values.min(), 0.0), max(values.max(), 0.0)
            if max_logit is not None and min_logit is not None:
                lo, hi = lo * sigmoid(min_logit[row, k]), hi * sigmoid(max_logit[row, k])
            h, zero = quantizer.grid(lo, hi)
            out[row, part] = (np.clip(np.rint(values / h) + zero, 0, quantizer.top) - zero) * h
    return out


def backward(
    quantizer: Quantizer, x: F64, dout: F64, max_logit: F64 | None = None, min_logit: F64 | None = None
) -> tuple[F64, F64, F64]:
    """Return dx [N, K] and the gradients of both logits [N, G] (zeros without them)."""
    groups = quantizer.groups(x.shape[1])
    dx, dmax, dmin = np.zeros_like(x), np.zeros((len(x), len(groups))), np.zeros((len(x), len(groups)))
    for row in range(len(x)):
        for k, part in enumerate(groups):
            logits = None
            if max_logit is not None and min_logit is not None:
                logits = (max_logit[row, k], min_logit[row, k])
            dx[row, part], dmax[row, k], dmin[row, k] = _group_backward(
                quantizer, x[row, part], dout[row, part], logits
            )
    return dx, dmax, dmin


def _group_backward(
    quantizer: Quantizer, x: F64, dout: F64, logits: tuple[float, float] | None
) -> tuple[F64, float, float]:
    lo, hi = min(x.min(), 0.0), max(x.max(), 0.0)
    keep_hi, keep_lo = (sigmoid(logits[0]), sigmoid(logits[1])) if logits else (1.0, 1.0)
    clipped_lo, clipped_hi = keep_lo * lo, keep_hi * hi
    h, zero = quantizer.grid(clipped_lo, clipped_hi)
    raw = np.rint(x / h) + zero
    q = np.clip(raw, 0, quantizer.top)
    inside = raw == q
    dx, dh = np.where(inside, dout, 0.0), float((dout * ((q - zero) - np.where(inside, x / h, 0.0))).sum())
    dhi = dlo = 0.0
    if clipped_hi == clipped_lo == 0:
        dh = 0.0  # the scale of an all-zero group is fixed
    if quantizer.symmetric and clipped_hi >= -clipped_lo:
        dhi = dh / quantizer.steps
    elif quantizer.symmetric:
        dlo = -dh / quantizer.steps
    else:
        dhi, dlo = dh / quantizer.top, -dh / quantizer.top
    for extreme, gradient in ((hi, keep_hi * dhi), (lo, keep_lo * dlo)):
        if extreme != 0:
            ties = x == extreme
            dx = dx + ties * (gradient / ties.sum())
    return dx, keep_hi * (1 - keep_hi) * hi * dhi, keep_lo * (1 - keep_lo) * lo * dlo
