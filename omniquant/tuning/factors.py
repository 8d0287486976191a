"""The steps h of all quantized weights and the gains of norms by factors of them, and Adam to train those.

h = rounded(h_0 exp(rate theta)),   dtheta = rate h dh          so that no step turns negative
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from omniquant import _core
from omniquant.forward import F32

_BETAS = (0.9, 0.95)
_EPSILON = 1e-8


@dataclass(frozen=True)
class Entry:
    """The scales of one linear, or the gains of one norm.

    Parameters
    ----------
    block : int
    name : str
        Of the tensor in the block's file.
    values : ndarray of float32 [out, groups] or [H]
        As calibration left them.
    bits : int
        Significant ones a value may have; 0: all.
    rate : float
        Of its learning, beside that of the others.
    """

    block: int
    name: str
    values: F32
    bits: int
    rate: float = 1.0


class Factors:
    """All scales and gains of a model.

    Parameters
    ----------
    entries : iterable of Entry

    Attributes
    ----------
    theta : ndarray of float32 [total]
        Zero at first: all as they are.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._places: dict[tuple[int, str], tuple[slice, Entry]] = {}
        total = 0
        for entry in entries:
            place = slice(total, total + entry.values.size)
            self._places[entry.block, entry.name] = (place, entry)
            total = place.stop
        self.theta: F32 = np.zeros(total, np.float32)

    def names(self, block: int) -> list[str]:
        """Return the names of a block's tensors that learn."""
        return [name for index, name in self._places if index == block]

    def get(self, block: int, name: str) -> F32:
        """Return one tensor at theta."""
        place, entry = self._places[block, name]
        values = entry.values * np.exp(entry.rate * self.theta[place]).reshape(entry.values.shape)
        return _core.round_scales(values, entry.bits) if entry.bits else values

    def add_gradient(self, dtheta: F32, block: int, name: str, gradient: F32) -> None:
        """Add one tensor's part to dtheta [total], from its gradient."""
        place, entry = self._places[block, name]
        dtheta[place] += (entry.rate * gradient * self.get(block, name)).ravel()


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1).

    Attributes
    ----------
    mean, square : ndarray of float32 [total]
        Its moments.
    steps : int
        Taken so far.
    """

    def __init__(self, total: int) -> None:
        self.mean: F32 = np.zeros(total, np.float32)
        self.square: F32 = np.zeros(total, np.float32)
        self.steps = 0

    def step(self, theta: F32, gradient: F32, rate: float) -> None:
        """Move theta [total] in place."""
        self.steps += 1
        corrections = [np.float32(1 - beta**self.steps) for beta in _BETAS]
        for moment, beta, value in zip(
            (self.mean, self.square), _BETAS, (gradient, gradient**2), strict=True
        ):
            moment *= np.float32(beta)
            moment += np.float32(1 - beta) * value
        spread = np.sqrt(self.square / corrections[1]) + np.float32(_EPSILON)
        theta -= np.float32(rate) * (self.mean / corrections[0]) / spread
