"""Reading safetensors checkpoints: one file, or shards with an index; memory-mapped.

The `safetensors` library validates each file (offsets contiguous to the end of the file, sizes that
agree with shapes); the header is then read once more for the offsets, which the library keeps to itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.json_file import parse_json_object, read_json_object
from omniquant.checkpoint.source import F32, Layout, drop_mapped, file_digests, widen
from omniquant.checkpoint.text import one_line, shown
from omniquant.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# Some 24,000 tensors a file; JSON of many small entries takes twelve times its size in memory.
_MAX_HEADER_BYTES = 3 << 20
_LENGTH_BYTES = 8

_STORED_TYPE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_INTEGER_TYPE: dict[str, np.dtype[Any]] = {
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
}
_TYPE_NAME = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Tensor(NamedTuple):
    """Where a tensor lies: bytes [start, stop) of its file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def _read_header(path: Path) -> tuple[int, dict[str, object]]:
    # Refuses an absurd length before the library allocates for it.
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size > _MAX_HEADER_BYTES:
                raise CheckpointError(f"{path}: header length {size} exceeds {_MAX_HEADER_BYTES} bytes")
            header = file.read(size)
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a valid safetensors file: {one_line(error)}") from error
    return _LENGTH_BYTES + size, parse_json_object(header, f"{path}: header")


def _tensor(path: Path, data_start: int, name: str, entry: Any) -> _Tensor:
    # The library has validated types and sizes; this only says so again where a lie slipped through.
    try:
        begin, end = entry["data_offsets"]
        shape = tuple(int(size) for size in entry["shape"])
        return _Tensor(path, str(entry["dtype"]), shape, data_start + int(begin), data_start + int(end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: tensor {shown(name)}: bad header entry: {one_line(error)}") from error


def _read_shard(path: Path) -> dict[str, _Tensor]:
    data_start, header = _read_header(path)
    header.pop("__metadata__", None)
    return {name: _tensor(path, data_start, name, entry) for name, entry in header.items()}


def _is_plain_name(value: object) -> bool:
    # An index must not reach outside its folder; NUL and lone surrogates are no printable characters.
    if not isinstance(value, str) or not value.isprintable():
        return False
    return value == Path(value).name and value.endswith(".safetensors")


def _shard_paths(index_path: Path, weight_map: dict[str, object]) -> list[Path]:
    for name, file_name in weight_map.items():
        if not _is_plain_name(file_name):
            raise CheckpointError(
                f"{index_path}: tensor {shown(name)} lies in {shown(file_name)}, "
                "no name of a safetensors file"
            )
    paths = [index_path.parent / str(file_name) for file_name in sorted(set(map(str, weight_map.values())))]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path}: shard is missing, listed in {INDEX_NAME}")
    return paths


def _read_index(index_path: Path) -> dict[str, _Tensor]:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index_path}: weight_map is {shown(weight_map)}, expected an object")
    tensors: dict[str, _Tensor] = {}
    for path in _shard_paths(index_path, weight_map):
        for name, tensor in _read_shard(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: tensor {shown(name)} lies in {tensors[name].path.name} too")
            if weight_map.get(name) != path.name:
                raise CheckpointError(f"{path}: tensor {shown(name)} is not listed for it in {INDEX_NAME}")
            tensors[name] = tensor
    absent = next((name for name in weight_map if name not in tensors), None)
    if absent is not None:
        path = index_path.parent / str(weight_map[absent])
        raise CheckpointError(f"{path}: tensor {shown(absent)} is missing")
    return tensors


def _read_tensors(path: Path) -> dict[str, _Tensor]:
    if path.is_file():
        return _read_shard(path)
    if (path / SINGLE_NAME).is_file():
        return _read_shard(path / SINGLE_NAME)
    if (path / INDEX_NAME).is_file():
        return _read_index(path / INDEX_NAME)
    raise CheckpointError(f"{path}: no {SINGLE_NAME} and no {INDEX_NAME} (only safetensors weights are read)")


class SafetensorsFolder:
    """Tensors of a safetensors file, or of a folder with one file or several shards.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a folder with ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises
    ------
    CheckpointError
        If a file is missing, truncated, lies about its sizes, or holds a tensor twice.
    """

    layout: Layout = "safetensors"

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._tensors = _read_tensors(self.path)
        self._maps: dict[Path, mmap.mmap] = {}

    @property
    def description(self) -> str:
        """The format and its number types, as in "safetensors float32"."""
        kinds = sorted({_TYPE_NAME.get(tensor.dtype, tensor.dtype) for tensor in self._tensors.values()})
        return f"safetensors {'/'.join(kinds)}"

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._tensors)

    def files(self) -> list[Path]:
        """Return the files the tensors are read from, sorted."""
        return sorted({tensor.path for tensor in self._tensors.values()})

    def digests(self) -> Iterator[bytes]:
        """Yield a sha256 of each file."""
        return file_digests(self.files())

    def file_of(self, name: str) -> Path:
        """Return the file, or shard, a tensor lies in."""
        return self._find(name).path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, rows first."""
        return self._find(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's number type: "F32", "F16", "BF16" or another one of the format."""
        return self._find(name).dtype

    def load(self, name: str) -> F32:
        """Return a tensor as float32: a read-only view of the file when stored so, else a widened copy.

        Raises
        ------
        UnsupportedCheckpointError
            If it is stored as anything but float32, float16 or bfloat16.
        """
        return widen(self._stored(name), bfloat16=self._find(name).dtype == "BF16")

    def load_stored(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor as it is stored, a read-only view of the file; bfloat16 as uint16 bits."""
        return self._stored(name, _STORED_TYPE | _INTEGER_TYPE)

    def drop_pages(self) -> None:
        """Let the system take back what was read of the files; it is read again where it is needed."""
        for mapped in self._maps.values():
            drop_mapped(mapped)

    def load_rows(self, name: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Return rows of a matrix as float32 [len(rows), ...] without reading the others."""
        stored = self._stored(name)[np.asarray(rows, np.int64)]
        return widen(stored, bfloat16=self._find(name).dtype == "BF16")

    def _find(self, name: str) -> _Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {shown(name)} is missing") from None

    def _stored(self, name: str, types: Mapping[str, np.dtype[Any]] = _STORED_TYPE) -> npt.NDArray[Any]:
        tensor = self._find(name)
        dtype = types.get(tensor.dtype)
        if dtype is None:
            raise UnsupportedCheckpointError(
                f"{tensor.path}: tensor {shown(name)} is {shown(tensor.dtype)}, F32, F16, BF16 are read"
            )
        if tensor.start == tensor.stop:
            return np.zeros(tensor.shape, dtype)
        count = (tensor.stop - tensor.start) // dtype.itemsize
        try:
            flat: npt.NDArray[Any] = np.frombuffer(self._mapped(tensor.path), dtype, count, tensor.start)
            return flat.reshape(tensor.shape)
        except (ValueError, OSError) as error:  # the file was replaced or cut since it was validated
            raise CheckpointError(f"{tensor.path}: tensor {shown(name)}: {one_line(error)}") from error

    def _mapped(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]
