"""The uniform quantizer, learnable weight clipping, integer codes and their bit streams."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniquant import _core

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def fake_quantize(
    x: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    full_range: bool = False,
    threads: int = 1,
) -> F32:
    """Round every value to the grid of its group and back: ``(q - z) h``.

    The grid covers [min, max] of the group and always contains 0: asymmetric ``h = (max - min) / (2^n - 1)``,
    ``z = round(-min / h)``; symmetric ``h = max|x| / (2^(n-1) - 1)``, ``z = 2^(n-1)``;
    ``q = clamp(round(x / h) + z, 0, 2^n - 1)``, rounding half to even. OmniQuant (arXiv 2308.13137), eq. 2.

    Parameters
    ----------
    x : array_like [..., K]
        At most half the largest float32 in magnitude.
    bits : int
        2 to 8.
    group_size : int
        0: one grid a row.
    symmetric : bool
        Zero point in the middle.
    full_range : bool
        Symmetric only: ``h = 2 max|x| / (2^n - 1)``, as compressed-tensors has it for activations.
    threads : int

    Returns
    -------
    ndarray of float32 [..., K]

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.fake_quantize(
        x, bits=bits, group_size=group_size, symmetric=symmetric, full_range=full_range, threads=threads
    )


def fake_quantize_backward(
    x: npt.ArrayLike,
    dout: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    full_range: bool = False,
    threads: int = 1,
) -> F32:
    """Return the straight-through gradient of :func:`fake_quantize` with respect to x.

    Rounding passes gradients as the identity, clipped values pass none, and the scale's gradient reaches the
    values that attain the group's min and max (ties share it equally). The rounded zero point has none.

    Parameters
    ----------
    x, dout : array_like [..., K]
        The input of the forward pass, and the gradient of its output.
    bits, group_size, symmetric, full_range, threads
        As for :func:`fake_quantize`.

    Returns
    -------
    ndarray of float32 [..., K]

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.fake_quantize_backward(
        x, dout, bits=bits, group_size=group_size, symmetric=symmetric, full_range=full_range, threads=threads
    )[0]


def lwc_forward(
    w: npt.ArrayLike,
    max_logit: npt.ArrayLike,
    min_logit: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    threads: int = 1,
) -> F32:
    """Fake-quantize under learnable weight clipping: ``max <- sigmoid(max_logit) max``, min likewise.

    OmniQuant (arXiv 2308.13137), eq. 2; the paper starts the logits at 4.

    Parameters
    ----------
    w : array_like [..., K]
    max_logit, min_logit : array_like [..., G]
        One pair a group.
    bits, group_size, symmetric, threads
        As for :func:`fake_quantize`.

    Returns
    -------
    ndarray of float32 [..., K]

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.fake_quantize(
        w,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        max_logit=max_logit,
        min_logit=min_logit,
        threads=threads,
    )


def lwc_backward(
    w: npt.ArrayLike,
    max_logit: npt.ArrayLike,
    min_logit: npt.ArrayLike,
    dout: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    threads: int = 1,
) -> tuple[F32, F32, F32]:
    """Return the straight-through gradients of :func:`lwc_forward`.

    Parameters
    ----------
    w, dout : array_like [..., K]
    max_logit, min_logit : array_like [..., G]
    bits, group_size, symmetric, threads
        As for :func:`fake_quantize`.

    Returns
    -------
    dw : ndarray of float32 [..., K]
    dmax_logit, dmin_logit : ndarray of float32 [..., G]

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    dw, dmax_logit, dmin_logit = _core.fake_quantize_backward(
        w, dout, bits=bits, group_size=group_size, symmetric=symmetric, max_logit=max_logit,
        min_logit=min_logit, threads=threads,
    )  # fmt: skip
    assert dmax_logit is not None, "both logits were given"
    assert dmin_logit is not None, "both logits were given"
    return dw, dmax_logit, dmin_logit


def quantize(
    x: npt.ArrayLike,
    *,
    bits: int,
    group_size: int = 0,
    symmetric: bool = False,
    full_range: bool = False,
    max_logit: npt.ArrayLike | None = None,
    min_logit: npt.ArrayLike | None = None,
    threads: int = 1,
) -> tuple[U8, F32, U8]:
    """Return integer codes, scales and zero points; :func:`dequantize` gives the bits of `fake_quantize`.

    Parameters
    ----------
    x : array_like [..., K]
    bits, group_size, symmetric, full_range, threads
        As for :func:`fake_quantize`.
    max_logit, min_logit : array_like [..., G], optional
        Learnable weight clipping, both or none.

    Returns
    -------
    codes : ndarray of uint8 [..., K]
        0 to 2^bits - 1.
    scale : ndarray of float32 [..., G]
    zero_point : ndarray of uint8 [..., G]
        An integer in the range of the codes (symmetric: 2^(bits - 1)).

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.quantize(
        x,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        full_range=full_range,
        max_logit=max_logit,
        min_logit=min_logit,
        threads=threads,
    )


def dequantize(
    codes: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike,
    *,
    group_size: int = 0,
    threads: int = 1,
) -> F32:
    """Return ``(codes - zero_point) scale``.

    Parameters
    ----------
    codes : array_like of int [..., K]
        0 to 255.
    scale : array_like [..., G]
    zero_point : array_like of int [..., G]
    group_size : int
        As it was for :func:`quantize`.
    threads : int

    Returns
    -------
    ndarray of float32 [..., K]

    Raises
    ------
    ValueError, TypeError, NotFiniteError
    """
    return _core.dequantize(codes, scale, zero_point, group_size=group_size, threads=threads)


def pack(codes: npt.ArrayLike, bits: int) -> U8:
    """Pack codes as a dense little-endian bit stream a row: code i fills the bits from ``i bits`` on.

    Parameters
    ----------
    codes : array_like of int [..., K]
        Below 2^bits.
    bits : int
        1 to 8.

    Returns
    -------
    ndarray of uint8 [..., ceil(K bits / 8)]
        Padded with zero bits at the end of every row.

    Raises
    ------
    ValueError
        If a code does not fit; the message names its row and column.
    TypeError
    """
    return _core.pack(codes, bits)


def unpack(packed: npt.ArrayLike, bits: int, width: int) -> U8:
    """Return the codes that :func:`pack` packed.

    Parameters
    ----------
    packed : array_like of int [..., ceil(width bits / 8)]
    bits : int
        1 to 8.
    width : int
        Codes a row.

    Returns
    -------
    ndarray of uint8 [..., width]

    Raises
    ------
    ValueError, TypeError
    """
    return _core.unpack(packed, bits, width)
