"""The header of a GGUF file (versions 2 and 3), read with every size checked before it is used.

`gguf.GGUFReader` makes an array object for each element of each metadata array (seconds and hundreds of
megabytes for an ordinary vocabulary) and reads past the end of a truncated file, so it cannot face
untrusted bytes. Here every byte is taken through one checked function; the tests compare the outcome
with `gguf.GGUFReader`. Layout: magic, version, tensor count, field count, fields, tensor entries,
padding, tensor data.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
# Real files have dozens of fields and up to two thousand tensors. All limits keep a hostile header's
# cost below a second and its memory near the file's size.
_MAX_FIELDS = 1 << 12
_MAX_TENSORS = 1 << 14
# The largest vocabularies have 2^18 tokens and twice as many merges.
_MAX_STRINGS = 1 << 20
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 1 << 16

_STRING, _ARRAY = 8, 9
# Value type of the format -> NumPy type.
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """An array of strings inside a file, decoded when asked for."""

    def __init__(self, data: memoryview, starts: array[int], where: str) -> None:
        self._data = data
        self._starts = starts
        self._where = where

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._decode(start) for start in self._starts[index]]
        return self._decode(self._starts[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._decode, self._starts)

    def _decode(self, start: int) -> str:
        (size,) = _U64.unpack_from(self._data, start)
        try:
            return str(self._data[start + 8 : start + 8 + size], "utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._where}: string at byte {start} is not UTF-8") from None


@dataclass(frozen=True)
class GgufTensor:
    """A tensor entry: llama.cpp writes dimensions innermost first, `shape` is rows first."""

    name: str
    shape: tuple[int, ...]
    type_code: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensor entries; tensor offsets count from `data_start`."""

    fields: dict[str, object]
    tensors: dict[str, GgufTensor]
    alignment: int
    data_start: int


class _Cursor:
    """A position in the file; the only place where a size of the file meets its end."""

    def __init__(self, data: memoryview, where: str) -> None:
        self.data = data
        self.where = where
        self.offset = 0
        self.strings = 0

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes and return where they start."""
        start = self.offset
        left = len(self.data) - start
        if size > left:
            raise CheckpointError(f"{self.where}: {what} at byte {start} needs {size} bytes, {left} are left")
        self.offset = start + size
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.take(4, what))[0])

    def u64(self, what: str, maximum: int) -> int:
        value = int(_U64.unpack_from(self.data, self.take(8, what))[0])
        if value > maximum:
            raise CheckpointError(f"{self.where}: {what} is {value}, at most {maximum} is allowed")
        return value

    def string(self, what: str, maximum: int) -> str:
        size = self.u64(f"length of {what}", maximum)
        start = self.take(size, what)
        try:
            return str(self.data[start : start + size], "utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.where}: {what} at byte {start} is not UTF-8") from None

    def string_array(self, count: int, what: str) -> StringArray:
        self.strings += count
        if self.strings > _MAX_STRINGS:
            raise CheckpointError(f"{self.where}: more than {_MAX_STRINGS} strings by {what}")
        starts = array("Q")
        length = f"length in {what}"
        for _ in range(count):
            starts.append(self.offset)
            self.take(self.u64(length, len(self.data)), what)
        return StringArray(self.data, starts, f"{self.where}: {what}")


def _read_value(cursor: _Cursor, type_code: int, what: str) -> object:
    size = len(cursor.data)
    if type_code == _STRING:
        return cursor.string(what, size)
    if type_code == _ARRAY:
        item_code = cursor.u32(f"item type of {what}")
        count = cursor.u64(f"length of {what}", size)
        if item_code == _STRING:
            return cursor.string_array(count, what)
        dtype = _scalar_type(cursor, item_code, what)
        start = cursor.take(count * dtype.itemsize, what)
        return np.frombuffer(cursor.data, dtype, count, start) if count else np.zeros(0, dtype)
    dtype = _scalar_type(cursor, type_code, what)
    start = cursor.take(dtype.itemsize, what)
    return np.frombuffer(cursor.data, dtype, 1, start)[0].item()


def _scalar_type(cursor: _Cursor, type_code: int, what: str) -> np.dtype[Any]:
    # Arrays of arrays end here too: the format allows them, no writer makes them, and nesting is an attack.
    try:
        return _SCALARS[type_code]
    except KeyError:
        raise CheckpointError(f"{cursor.where}: {what} has the unknown value type {type_code}") from None


def _read_fields(cursor: _Cursor, count: int) -> dict[str, object]:
    fields: dict[str, object] = {}
    for index in range(count):
        key = cursor.string(f"key of field {index}", _MAX_NAME_BYTES)
        if key in fields:
            raise CheckpointError(f"{cursor.where}: field {shown(key)} occurs twice")
        fields[key] = _read_value(cursor, cursor.u32(f"type of {shown(key)}"), f"field {shown(key)}")
    return fields


def _read_tensors(cursor: _Cursor, count: int) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for index in range(count):
        name = cursor.string(f"name of tensor {index}", _MAX_NAME_BYTES)
        what = f"tensor {shown(name)}"
        if name in tensors:
            raise CheckpointError(f"{cursor.where}: {what} occurs twice")
        rank = cursor.u32(f"rank of {what}")
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise CheckpointError(
                f"{cursor.where}: {what} has {rank} dimensions, expected 1 to {_MAX_DIMENSIONS}"
            )
        shape = tuple(cursor.u64(f"dimension of {what}", 2**40) for _ in range(rank))[::-1]
        type_code = cursor.u32(f"type of {what}")
        tensors[name] = GgufTensor(name, shape, type_code, cursor.u64(f"offset of {what}", len(cursor.data)))
    return tensors


def _read_preamble(cursor: _Cursor) -> tuple[int, int]:
    start = cursor.take(4, "magic")
    if cursor.data[start : start + 4] != _MAGIC:
        raise CheckpointError(f"{cursor.where}: not a GGUF file: starts with {bytes(cursor.data[:4])!r}")
    version = cursor.u32("version")
    if version not in _VERSIONS:
        big_endian = version >> 24 in _VERSIONS and version & 0xFFFFFF == 0
        hint = " (a big-endian file)" if big_endian else ""
        raise UnsupportedCheckpointError(
            f"{cursor.where}: GGUF version {version}{hint}, versions 2 and 3 are read"
        )
    return cursor.u64("tensor count", _MAX_TENSORS), cursor.u64("field count", _MAX_FIELDS)


def _alignment(cursor: _Cursor, fields: dict[str, object]) -> int:
    value = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 1 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        raise CheckpointError(f"{cursor.where}: general.alignment is {shown(value)}, expected a power of two")
    return value


def align(offset: int, alignment: int) -> int:
    """Return the next multiple of the alignment, padding included: the one formula for it."""
    return offset + -offset % alignment


def read_header(data: memoryview, where: str) -> GgufHeader:
    """Read the header of a GGUF file.

    Parameters
    ----------
    data
        The whole file; only the header's pages are touched.
    where
        Its path, for messages.

    Raises
    ------
    CheckpointError
        If it is no GGUF, is truncated, or a count, size or name is impossible.
    """
    cursor = _Cursor(data, where)
    tensor_count, field_count = _read_preamble(cursor)
    fields = _read_fields(cursor, field_count)
    tensors = _read_tensors(cursor, tensor_count)
    alignment = _alignment(cursor, fields)
    return GgufHeader(fields, tensors, alignment, align(cursor.offset, alignment))
