"""Strict diagonal dominance (Levy-Desplanques): margins, Varah's bound, projection."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniquant import _core

F64 = npt.NDArray[np.float64]


def dominance_margins(a: npt.ArrayLike) -> F64:
    """Return ``|A_ii| - sum_{j != i} |A_ij|`` of every row; all positive: A is invertible (Levy-Desplanques).

    Parameters
    ----------
    a : array_like [n, n] or [blocks, n, n]

    Returns
    -------
    ndarray of float64 [n] or [blocks, n]

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.dominance_margins(a)


def varah_bound(a: npt.ArrayLike) -> float | F64:
    """Return Varah's bound on the largest absolute row sum of the inverse: 1 / the smallest margin.

    Parameters
    ----------
    a : array_like [n, n] or [blocks, n, n]

    Returns
    -------
    float, or ndarray of float64 [blocks]
        Infinity where A is not strictly dominant.

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    bound: float | F64 = _core.varah_bound(a)
    return bound


def project_dominant(a: npt.ArrayLike, tau: float = 0.05) -> tuple[F64, int]:
    """Return a copy of A whose weak rows had their off-diagonals shrunk to a margin of ``tau |A_ii|``.

    Parameters
    ----------
    a : array_like [n, n] or [blocks, n, n]
    tau : float
        Between 0 and 1.

    Returns
    -------
    projected : ndarray of float64, of the shape of `a`
    rows_changed : int

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.project_dominant(a, tau)
