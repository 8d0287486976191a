"""Equivalent transforms of a linear: channel-wise (LET) and affine, and the gradual mask."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from omniquant import _core

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Parametrization = Literal["relative", "absolute"]


def let_forward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    scale: npt.ArrayLike,
    shift: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
) -> tuple[F32, F32, F32 | None]:
    """Move a channel-wise scale and shift from the input of a linear into its weight and bias.

    ``(x - shift) / scale @ (weight * scale).T + (bias + weight @ shift)`` equals ``x @ weight.T + bias``.
    OmniQuant (arXiv 2308.13137), eq. 3.

    Parameters
    ----------
    x : array_like [..., K]
    weight : array_like [M, K]
    scale : array_like [K]
        No zeros.
    shift : array_like [K], optional
    bias : array_like [M], optional
    threads : int

    Returns
    -------
    x_transformed : ndarray of float32 [..., K]
    weight_transformed : ndarray of float32 [M, K]
    bias_transformed : ndarray of float32 [M] or None
        None when there is neither a shift nor a bias.

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    SingularError
        If a scale has no inverse.
    """
    return _core.let_forward(x, weight, scale, shift, bias, threads=threads)


def let_backward(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    scale: npt.ArrayLike,
    dx_transformed: npt.ArrayLike,
    dweight_transformed: npt.ArrayLike,
    shift: npt.ArrayLike | None = None,
    dbias_transformed: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
) -> tuple[F32, F32, F32, F32 | None]:
    """Return the gradients of :func:`let_forward`; that of the bias is `dbias_transformed` itself.

    Parameters
    ----------
    x, dx_transformed : array_like [..., K]
    weight, dweight_transformed : array_like [M, K]
    scale : array_like [K]
    shift : array_like [K], optional
    dbias_transformed : array_like [M], optional
    threads : int

    Returns
    -------
    dx : ndarray of float32 [..., K]
    dweight : ndarray of float32 [M, K]
    dscale : ndarray of float32 [K]
    dshift : ndarray of float32 [K] or None
        None without a shift.

    Raises
    ------
    ValueError, TypeError, NotFiniteError, SingularError
    """
    return _core.let_backward(
        x, weight, scale, dx_transformed, dweight_transformed, shift, dbias_transformed, threads=threads
    )


def affine_forward(
    parameters: npt.ArrayLike,
    *,
    band: int | None = None,
    stability: float = 1.0,
    parametrization: Parametrization = "relative",
    threads: int = 1,
) -> tuple[F64, F64]:
    """Return the affine map A and its inverse, in double, from its parameters P under the gradual mask M.

    "absolute" is ``A = P * M`` (AffineQuant, arXiv 2403.12544, eq. 6); "relative" has ``A_ii = P_ii`` and
    ``A_ij = P_ii M_ij P_ij``, so that strict dominance is ``sum_j |M_ij P_ij| < 1`` a row. The map is used as
    ``X A^-1`` and ``W A^T``.

    Parameters
    ----------
    parameters : array_like [n, n] or [blocks, n, n]
    band : int, optional
        |i - j| <= band is open; None: everything.
    stability : float
        The mask's value off the diagonal.
    parametrization : {"relative", "absolute"}
    threads : int

    Returns
    -------
    a, a_inverse : ndarray of float64, of the shape of `parameters`

    Raises
    ------
    SingularError
        If a block has no inverse, or a condition number beyond 1e12.
    ValueError, TypeError, NotFiniteError
    """
    return _core.affine_forward(
        parameters, band=_band(band), stability=stability, parametrization=parametrization, threads=threads
    )


def affine_backward(
    parameters: npt.ArrayLike,
    da: npt.ArrayLike | None = None,
    da_inverse: npt.ArrayLike | None = None,
    *,
    band: int | None = None,
    stability: float = 1.0,
    parametrization: Parametrization = "relative",
    threads: int = 1,
) -> F32:
    """Return the gradient of the parameters: ``dA - A^-T dA^-1 A^-T``, through the mask.

    Parameters
    ----------
    parameters : array_like [n, n] or [blocks, n, n]
    da, da_inverse : array_like, of the shape of `parameters`, optional
        Gradients of A and of its inverse; None is zero.
    band, stability, parametrization, threads
        As for :func:`affine_forward`.

    Returns
    -------
    ndarray of float32, of the shape of `parameters`

    Raises
    ------
    ValueError, TypeError, NotFiniteError, SingularError
    """
    return _core.affine_backward(
        parameters,
        da,
        da_inverse,
        band=_band(band),
        stability=stability,
        parametrization=parametrization,
        threads=threads,
    )


def _band(band: int | None) -> int:
    if band is not None and band < 0:
        raise ValueError(f"band: expected at least 0, got {band}")
    return -1 if band is None else band


def gradual_mask(width: int, epoch: int, epochs: int, stability: float = 1.0) -> F64:
    """Return AffineQuant's gradual mask (arXiv 2403.12544, eq. 7): a band that opens with the epochs.

    1 on the diagonal, `stability` where ``|i - j| <= floor((width - 1) epoch / (epochs - 1))``, 0 elsewhere;
    open entirely in the last epoch.

    Parameters
    ----------
    width : int
    epoch : int
        From 0 to epochs - 1.
    epochs : int
    stability : float

    Returns
    -------
    ndarray of float64 [width, width]

    Raises
    ------
    ValueError
    """
    return _core.gradual_mask(width, epoch, epochs, stability)
