"""One linear layer on packed weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.errors import ConfigError
from omniquant.reprs import one_line_repr
from omniquant.threads import resolve_threads

F32 = npt.NDArray[np.float32]

_ACTIVATION_BITS = {**{f"int{bits}": bits for bits in (16, *range(8, 1, -1))}, "float": 32}


def available() -> tuple[str, ...]:
    """Return the names of the kernels that run on this processor, the best first."""
    return tuple(_core.kernel_names())


def _whole(value: object, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ConfigError(f"{name} {value!r} is not a whole number from {least} to {most}")
    return int(value)


class Linear:
    """y = x Wᵀ + bias with W = (codes - zero_points) scales, computed in integers.

    Weights stay packed at their bits; a call quantizes x token by token as :func:`omniquant.fake_quantize`
    does (the same codes, scales and zero points), sums products of integers exactly and scales once a group.
    With ``activations="int16"`` (A16 of a scheme) or ``"float"`` (A32) x becomes fixed point, with a step for
    every 128 inputs of a group at most: 1/32512 of their largest value, which is finer than half precision,
    or 1/8323072, which is as exact as a float32 product and takes half as long again.

    Parameters
    ----------
    codes : array_like of int [N, K]
        0 to 2^bits - 1.
    scales : array_like of float [N, G]
        One a row and group of inputs, finite.
    zero_points : array_like of int [N, G], optional
        0 to 2^bits - 1; None is symmetric: 2^(bits - 1).
    bits : int
        2 to 8; 5, 6 and 7 take as much memory as 8.
    group_size : int, optional
        Consecutive inputs that share a scale, 1 to K; None: the whole row. G = ceil(K / group_size), the last
        group may be shorter.
    activations : {"int8", "int7", ..., "int2", "int16", "float"}, optional
        What x becomes on the way: codes of so many bits with a scale a token, or fixed point.
    symmetric_activations : bool, optional
        One grid around zero a token (zero point 2^(n - 1)) rather than one from smallest to largest.
    full_range_activations : bool, optional
        Of a symmetric grid: step max|x| / (2^(n - 1) - 1/2), as compressed-tensors has it.
    bias : array_like of float [N], optional
    threads : int, optional
        None: as `OMP_NUM_THREADS` says, else all processors.
    kernel : str, optional
        One of :func:`available`; None: the best.

    Raises
    ------
    ConfigError, ValueError
        Bits, group size, shapes, codes, zero points or an activation kind that do not fit.
    NotFiniteError
        A scale or bias that is NaN or infinite.
    UnsupportedError
        A kernel that does not exist or cannot run on this processor.
    TypeError
        An array of a dtype that cannot be converted.

    Examples
    --------
    >>> import numpy as np, omniquant
    >>> from omniquant.kernels import Linear
    >>> w, x = np.random.default_rng(0).standard_normal((2, 8, 64)).astype(np.float32)
    >>> codes, scales, zero_points = omniquant.quantize(w, bits=4, group_size=32)
    >>> Linear(codes, scales, zero_points, bits=4, group_size=32)(x).shape
    (8, 8)
    """

    def __init__(
        self,
        codes: npt.ArrayLike,
        scales: npt.ArrayLike,
        zero_points: npt.ArrayLike | None = None,
        *,
        bits: int,
        group_size: int | None = None,
        activations: str = "int8",
        symmetric_activations: bool = False,
        full_range_activations: bool = False,
        bias: npt.ArrayLike | None = None,
        threads: int | None = None,
        kernel: str | None = None,
    ) -> None:
        if activations not in _ACTIVATION_BITS:
            raise ConfigError(f"activations {activations!r} are not one of {', '.join(_ACTIVATION_BITS)}")
        group = 0 if group_size is None else _whole(group_size, "group_size", 1, 2**31)
        if full_range_activations and not symmetric_activations:
            raise ConfigError("full_range_activations: only symmetric activations have a full-range step")
        width = _ACTIVATION_BITS[activations]
        self._threads = resolve_threads(threads)
        self._packed = _core.linear_pack(
            codes,
            bits=_whole(bits, "bits", 2, 8),
            group_size=group,
            scales=scales,
            zero_points=zero_points,
            bias=bias,
            activation_bits=width,
            symmetric=bool(symmetric_activations),
            full_range=bool(full_range_activations),
            kernel=kernel,
            threads=self._threads,
        )
        outputs, inputs = np.shape(codes)
        groups = "" if group_size is None else f", group_size {group_size}"
        grid = "symmetric " if symmetric_activations else ""
        self._about = f"{inputs} -> {outputs}, W{bits}{groups}, {grid}{activations} activations"

    def __call__(self, x: npt.ArrayLike, out: F32 | None = None) -> F32:
        """Return y [..., N] for x [..., K]; calls from several threads at a time are fine.

        Parameters
        ----------
        x : array_like [..., K]
        out : ndarray of float32 [..., N], optional
            C-contiguous and apart from x: y is written there, and `out` returned. Many rows take a tenth less
            time than with a new array, whose pages the system has to clear first.

        Raises
        ------
        ValueError
            If the last axis of x is not K, or `out` is of another shape or shares memory with x.
        NotFiniteError
            Naming the row and column of a NaN, an infinity or a number above half the largest.
        TypeError
            For an `out` that is not such an array.
        """
        return _core.linear_run(self._packed, x, threads=self._threads, out=out)

    @property
    def kernel(self) -> str:
        """The name of the kernel that computes it."""
        return _core.linear_info(self._packed)[0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory the packed layer takes."""
        return _core.linear_info(self._packed)[1]

    @one_line_repr
    def __repr__(self) -> str:
        return f"{self._about}, kernel {self.kernel}"
