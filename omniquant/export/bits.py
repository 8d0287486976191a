"""What formats of packed integers share: bit streams in int32 words, scales in float16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniquant import _core
from omniquant.errors import UnsupportedError
from omniquant.export.content import U8, Linear


def bit_stream(codes: U8, bits: int) -> npt.NDArray[np.int32]:
    """Return rows of codes as dense little-endian bit streams: int32 [rows, ceil(columns bits / 32)]."""
    data = _core.pack(codes, bits)
    padded = np.pad(data, ((0, 0), (0, -data.shape[1] % 4)))
    return np.ascontiguousarray(padded).view("<i4").astype(np.int32, copy=False)


def nibbles(codes: U8) -> U8:
    """Return codes below 16 of any shape as one run of bytes, the first of two in the low half."""
    packed: U8 = _core.pack(codes.reshape(1, -1), 4)[0]
    return packed


def half_scales(linear: Linear, where: str, target: str) -> npt.NDArray[np.float16]:
    """Return the scales [N, G] as float16; UnsupportedError where one is too large for it."""
    return halves(linear.scale, where, target)


def halves(values: npt.NDArray[np.floating], where: str, target: str) -> npt.NDArray[np.float16]:
    """Return scales as float16; UnsupportedError where one is too large for it."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if np.isfinite(half).all():
        return half
    raise UnsupportedError(
        f"{where}: a scale of {np.abs(values).max():g} is too large for float16; "
        f"nearest: calibrate with --target {target}"
    )
