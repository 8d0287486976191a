"""What is measured: shapes, and the weights everybody gets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import omniquant

ROTATION = 128 << 20
"""Bytes of weights that all contenders together go through before any meets the same ones again."""


class Shape(NamedTuple):
    """x [m, k] times W [n, k] transposed."""

    k: int
    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.k}x{self.n}, {self.m} row{'s' if self.m > 1 else ''}"

    @property
    def group(self) -> int:
        return 128 if self.k % 128 == 0 else 64


QUICK = [Shape(576, 1536, 1), Shape(4096, 4096, 1), Shape(4096, 4096, 128)]
LAYERS = ((576, 1536), (2048, 5632), (4096, 4096), (4096, 11008))
FULL = [Shape(k, n, m) for k, n in LAYERS for m in (1, 8, 128, 512)]


class Weights(NamedTuple):
    """One layer: W [n, k] and its codes, scales [n, groups] and zero points [n, groups]."""

    w: npt.NDArray[np.float32]
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.uint8]
    bits: int
    group: int


def make_weights(shape: Shape, bits: int, group: int) -> Weights:
    w = np.random.default_rng(0).standard_normal((shape.n, shape.k), dtype=np.float32)
    w /= np.float32(shape.k**0.5)
    return Weights(w, *omniquant.quantize(w, bits=bits, group_size=group), bits, group)


def make_x(shape: Shape) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((shape.m, shape.k), dtype=np.float32)
