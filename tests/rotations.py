"""The fixed orthogonal matrix of any size, written down entry by entry."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def fixed_rotation(n: int) -> npt.NDArray[np.float64]:
    """Return T_n [n, n]: Hartley's matrix of the odd part of n, Sylvester's of the power of two."""
    odd, hadamard = n, np.ones((1, 1))
    while odd % 2 == 0:
        odd //= 2
        hadamard = np.kron(np.array([[1, 1], [1, -1]]), hadamard)
    angle = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
    return np.asarray(np.kron(np.cos(angle) + np.sin(angle), hadamard) / np.sqrt(n))
