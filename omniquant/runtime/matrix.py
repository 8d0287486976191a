"""A matrix in the precision it came in, as files keep it and the core reads it: embedding and head.

Checkpoints come as float32, float16, bfloat16, or, in GGUF files, as bytes or nibbles with a half-precision
scale every 32 inputs (Q8_0 and Q4_0, dequantized when read). Whatever holds every value exactly and is
smallest is stored; nothing is rounded here, but where :func:`rounded` is asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.source import F32
from omniquant.errors import CheckpointError

FLOAT, HALF, BFLOAT, BYTES, NIBBLES = range(5)  # oq_dense_kind
GROUP = 32  # inputs that share a scale in BYTES and NIBBLES
_ROWS = 4096  # looked at together

_SUFFIXES = {FLOAT: "weight", HALF: "weight", BFLOAT: "bfloat16", BYTES: "codes", NIBBLES: "nibbles"}


@dataclass(frozen=True)
class Matrix:
    """Values [rows, columns] and how to read them.

    Parameters
    ----------
    kind : int
        FLOAT, HALF, BFLOAT, BYTES or NIBBLES.
    values : ndarray
        float32, float16, the bits of bfloat16 as uint16, int8; or, of NIBBLES, uint8 [rows, columns / 2]:
        byte j of a group holds values j (low) and j + 16, each with 8 added.
    scales : ndarray of float16 [rows, ceil(columns / 32)], optional
        BYTES and NIBBLES: a value is code times scale.
    """

    kind: int
    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float16] | None = None

    @classmethod
    def exact(cls, values: F32) -> Matrix:
        """Return the smallest kind that holds every float32 exactly."""
        return cls.exact_rows(lambda part: values[part], len(values))

    @classmethod
    def exact_rows(cls, load: Callable[[slice], F32], rows: int) -> Matrix:
        """Return the same of a matrix `load` reads rows of: it is never whole in float32 unless it has to."""
        for convert in (_as_nibbles, _as_bytes, _as_half, _as_bfloat, _as_float):
            matrix = _gathered(convert, load, rows)
            if matrix is not None:
                return matrix
        raise AssertionError("float32 holds every float32")

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def rows(self, index: Any = slice(None)) -> F32:
        """Return rows (all by default) as float32."""
        values = self.values[index]
        if self.kind == BFLOAT:
            bits: npt.NDArray[np.uint32] = values.astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32)
        if self.scales is None:
            return np.require(values.astype(np.float32, copy=False), requirements=["C", "A"])
        values = _spread(values) if self.kind == NIBBLES else values
        columns = values.shape[-1]
        widened: F32 = values.astype(np.float32)
        widened *= np.repeat(self.scales[index].astype(np.float32), GROUP, axis=-1)[..., :columns]
        return widened

    def to_core(self) -> tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        """Return what the core takes: values and scales as bytes, rows first."""
        return self.kind, _bytes(self.values), None if self.scales is None else _bytes(self.scales)

    def to_tensors(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return what a file keeps: "name.weight", ".bfloat16", ".codes" or ".nibbles", and "name.scale"."""
        tensors: dict[str, npt.NDArray[Any]] = {f"{name}.{_SUFFIXES[self.kind]}": self.values}
        return tensors if self.scales is None else tensors | {f"{name}.scale": self.scales}


def from_tensors(
    name: str,
    shape: tuple[int, int],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    load: Callable[[str], npt.NDArray[Any]],
    where: str,
) -> Matrix:
    """Read what :meth:`Matrix.to_tensors` gave, from a file nobody vouches for.

    Parameters
    ----------
    name : str
    shape : (int, int)
        It must have.
    tensors : mapping of str to (dtype, shape)
        What the file holds.
    load : callable
        Returns a tensor as it is stored.
    where : str
        The file, for messages.

    Raises
    ------
    CheckpointError
        If a tensor is missing or of another type or shape, or holds NaN or infinity.
    """
    groups = (shape[0], -(-shape[1] // GROUP))
    if f"{name}.codes" in tensors:
        layout = {f"{name}.codes": ("I8", shape), f"{name}.scale": ("F16", groups)}
    elif f"{name}.nibbles" in tensors and not shape[1] % GROUP:
        layout = {f"{name}.nibbles": ("U8", (shape[0], shape[1] // 2)), f"{name}.scale": ("F16", groups)}
    elif f"{name}.bfloat16" in tensors:
        layout = {f"{name}.bfloat16": ("U16", shape)}
    else:
        kind = tensors.get(f"{name}.weight", ("F32",))[0]
        layout = {f"{name}.weight": (kind if kind == "F16" else "F32", shape)}
    for key, expected in layout.items():
        if tensors.get(key) != expected:
            found = "missing" if key not in tensors else f"{tensors[key][0]} {list(tensors[key][1])}"
            raise CheckpointError(f"{where}: {key} is {found}, expected {expected[0]} {list(expected[1])}")
    arrays = [load(key) for key in layout]
    kind_of = {"I8": BYTES, "U8": NIBBLES, "U16": BFLOAT, "F16": HALF, "F32": FLOAT}
    matrix = Matrix(kind_of[next(iter(layout.values()))[0]], *arrays)
    if not _finite(matrix):
        raise CheckpointError(f"{where}: {next(reversed(layout))} holds NaN or infinity")
    return matrix


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    # The core reads numbers in place, so they must lie where numbers may.
    return np.require(array, requirements=["C", "A"]).view(np.uint8)


def row_parts(rows: int) -> Iterator[slice]:
    """Yield slices of rows that are looked at together; an empty one where there are none."""
    for start in range(0, max(rows, 1), _ROWS):
        yield slice(start, min(rows, start + _ROWS))


def _finite(matrix: Matrix) -> bool:
    # All exponent bits set: NaN or infinity, whatever the kind.
    if matrix.scales is not None:
        return bool(np.isfinite(matrix.scales).all())
    mask = {FLOAT: 0x7F800000, HALF: 0x7C00, BFLOAT: 0x7F80}[matrix.kind]
    bits: npt.NDArray[Any] = matrix.values.view(np.uint32 if matrix.kind == FLOAT else np.uint16)
    return all(bool(((bits[part] & mask) != mask).all()) for part in row_parts(len(bits)))


def _gathered(
    convert: Callable[[F32], Matrix | None], load: Callable[[slice], F32], rows: int
) -> Matrix | None:
    """Return what `convert` makes of all rows, None if some do not allow it."""
    whole: Matrix | None = None
    for part in row_parts(rows):
        piece = convert(load(part))
        if piece is None:
            return None
        if whole is None:  # the first rows tell types and widths
            scales = None if piece.scales is None else np.empty((rows, piece.scales.shape[1]), np.float16)
            values = np.empty((rows, *piece.values.shape[1:]), piece.values.dtype)
            whole = Matrix(piece.kind, values, scales)
        whole.values[part] = piece.values
        if whole.scales is not None:
            whole.scales[part] = piece.scales
    return whole


def exact_half(values: F32) -> npt.NDArray[np.float16] | None:
    """Return values as float16 where that holds every one exactly, else None."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


def _as_half(values: F32) -> Matrix | None:
    half = exact_half(values)
    return None if half is None else Matrix(HALF, half)


def _as_bfloat(values: F32) -> Matrix | None:
    bits = np.ascontiguousarray(values).view(np.uint32)
    if (bits & np.uint32(0xFFFF)).any():
        return None
    return Matrix(BFLOAT, (bits >> np.uint32(16)).astype(np.uint16))


def _as_float(values: F32) -> Matrix:
    return Matrix(FLOAT, values)


def _as_bytes(values: F32) -> Matrix | None:
    return _as_groups(values, 8)


def _as_nibbles(values: F32) -> Matrix | None:
    return _as_groups(values, 4)


def _as_groups(values: F32, bits: int) -> Matrix | None:
    rows, columns = values.shape
    if columns % GROUP or not rows:
        return None
    code, scales = _codes(values, bits)
    with np.errstate(all="ignore"):
        if not np.array_equal(_decoded(code, scales).reshape(values.shape), values):
            return None
    whole = code.reshape(rows, columns).astype(np.int8)
    scales = scales.reshape(rows, -1)
    return Matrix(BYTES, whole, scales) if bits == 8 else Matrix(NIBBLES, _gather(whole), scales)


def rounded(values: F32, bits: int) -> F32:
    """Return values [.., K], K whole groups, rounded to the nearest that BYTES (8) or NIBBLES (4) holds."""
    with np.errstate(all="ignore"):  # what is not finite stays so
        return _decoded(*_codes(values, bits)).reshape(values.shape)


def _codes(values: F32, bits: int) -> tuple[F32, npt.NDArray[np.float16]]:
    """Return the codes [.., G, 32] and scales [.., G] of rows.

    Bytes are symmetric, -127 to 127. Of the 16 nibbles -8 to 7 the one that has no counterpart is the largest
    value's, whatever its sign: a scale may be negative. So it is in Q8_0 and Q4_0.
    """
    blocks = values.reshape(*values.shape[:-1], -1, GROUP)
    with np.errstate(all="ignore"):
        if bits == 8:
            least, most, steps = -127, 127, np.abs(blocks).max(axis=-1) / 127
        else:
            at = np.abs(blocks).argmax(axis=-1)[..., None]
            least, most, steps = -8, 7, np.take_along_axis(blocks, at, axis=-1)[..., 0] / -8
        scales = (steps + np.float32(0)).astype(np.float16)  # no -0
        code = np.rint(blocks / scales.astype(np.float32)[..., None])
    return np.nan_to_num(code, nan=0.0, posinf=0.0, neginf=0.0).clip(least, most), scales


def _decoded(code: F32, scales: npt.NDArray[np.float16]) -> F32:
    return np.asarray(code * scales.astype(np.float32)[..., None], np.float32)


def _gather(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return codes -8 to 7 [rows, columns] two a byte, [rows, columns / 2]."""
    halves = (codes + np.int8(8)).view(np.uint8).reshape(len(codes), -1, 2, GROUP // 2)
    both: npt.NDArray[np.uint8] = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return both.reshape(len(codes), -1)


def _spread(nibbles: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Return what :func:`_gather` was given, of rows [.., columns / 2]."""
    grouped = nibbles.reshape(*nibbles.shape[:-1], -1, GROUP // 2)
    halves = np.concatenate([grouped & np.uint8(15), grouped >> np.uint8(4)], axis=-1)
    return halves.reshape(*nibbles.shape[:-1], -1).view(np.int8) - np.int8(8)
