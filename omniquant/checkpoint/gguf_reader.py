"""Reading GGUF files (llama.cpp) through the `gguf` library's dequantizers; memory-mapped."""

from __future__ import annotations

import importlib
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.errors import UnsupportedCheckpointError
from omniquant.checkpoint.fields import Fields
from omniquant.checkpoint.gguf_header import GgufHeader, GgufTensor, align, read_header
from omniquant.checkpoint.source import F32, Layout, drop_mapped, file_digests
from omniquant.checkpoint.text import one_line, shown
from omniquant.errors import CheckpointError

_EMBEDDING = "token_embd.weight"
_HEAD = "output.weight"
_MAX_PARTS = 1000


def _gguf_library() -> ModuleType:
    # Optional, and 0.1 s to import: only when a GGUF file is opened.
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise CheckpointError(
            "reading GGUF files needs the gguf package: pip install 'omniquant-c[gguf]' or pip install gguf"
        ) from error


@dataclass(frozen=True)
class _Stored:
    """A tensor's place, bytes [start, start + rows * row_bytes), and its number type."""

    shape: tuple[int, ...]
    type_code: int
    type_name: str
    start: int
    rows: int
    row_bytes: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.row_bytes


def _place(library: ModuleType, header: GgufHeader, tensor: GgufTensor, where: str) -> _Stored:
    what = f"{where}: tensor {shown(tensor.name)}"
    try:
        kind = library.GGMLQuantizationType(tensor.type_code)
        block, block_bytes = library.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UnsupportedCheckpointError(f"{what} has the unknown number type {tensor.type_code}") from None
    if 0 in tensor.shape or tensor.shape[-1] % block:
        raise CheckpointError(f"{what} is {list(tensor.shape)}, rows of {kind.name} are multiples of {block}")
    if tensor.offset % header.alignment:
        raise CheckpointError(
            f"{what} starts at offset {tensor.offset}, not a multiple of {header.alignment}"
        )
    row_bytes = tensor.shape[-1] // block * block_bytes
    start = header.data_start + tensor.offset
    return _Stored(tensor.shape, tensor.type_code, kind.name, start, prod(tensor.shape[:-1]), row_bytes)


def _check_coverage(places: dict[str, _Stored], header: GgufHeader, size: int, where: str) -> None:
    # Tensors follow one another, padded, to the end of the file: no gap, no overlap, nothing cut off.
    expected = header.data_start
    for name, place in sorted(places.items(), key=lambda item: item[1].start):
        what = f"{where}: tensor {shown(name)}"
        if place.start != expected:
            raise CheckpointError(f"{what} starts at byte {place.start}, expected {expected}")
        if place.stop > size:
            raise CheckpointError(f"{what} ends at byte {place.stop}, the file at {size}")
        expected = align(place.stop, header.alignment)
    if size > expected:
        raise CheckpointError(f"{where}: {size - expected} bytes after the last tensor")


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def part_paths(path: Path) -> list[Path]:
    """Return the paths of all parts of a split model by the name of one, else the path alone."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match[1], int(match[3])
    if not 1 <= int(match[2]) <= count <= _MAX_PARTS:
        raise CheckpointError(f"{path}: part {int(match[2])} of {count}, expected 1 to {_MAX_PARTS} parts")
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


@dataclass(frozen=True)
class _Part:
    """One file: its metadata, and where its tensors lie."""

    path: Path
    fields: Fields
    mapped: mmap.mmap
    places: dict[str, _Stored]

    @classmethod
    def open(cls, path: Path, library: ModuleType) -> _Part:
        mapped, where = _map(path), str(path)
        data = memoryview(mapped)
        header = read_header(data, where)
        places = {name: _place(library, header, tensor, where) for name, tensor in header.tensors.items()}
        _check_coverage(places, header, len(data), where)
        return cls(path, Fields(header.fields, where), mapped, places)


def _homes(parts: list[_Part]) -> dict[str, _Part]:
    """Return the part of every tensor, after checking that the parts belong together."""
    homes: dict[str, _Part] = {}
    for index, part in enumerate(parts):
        count = part.fields.integer("split.count", 1, minimum=0) or 1
        number = part.fields.integer("split.no", 0, minimum=0)
        if count != len(parts) or number != index:
            raise CheckpointError(
                f"{part.path}: part {number + 1} of {count} of a split model, its name says {index + 1} of "
                f"{len(parts)}: parts are named NAME-00001-of-{count:05}.gguf"
            )
        for name in part.places:
            if name in homes:
                raise CheckpointError(f"{part.path}: tensor {shown(name)} is in {homes[name].path.name} too")
            homes[name] = part
    total = parts[0].fields.integer("split.tensors.count", len(homes), minimum=0)
    if total != len(homes):
        raise CheckpointError(f"{parts[0].path}: the parts hold {len(homes)} tensors, expected {total}")
    return homes


class GgufFile:
    """Tensors of a GGUF file, dequantized to float32 as they are asked for.

    Parameters
    ----------
    path
        The file; of a split model any of its parts, ``NAME-00001-of-00003.gguf``, brings the others.

    Raises
    ------
    CheckpointError
        If a file is truncated or lies about its sizes, parts are missing or do not belong together, or the
        `gguf` package is not installed.
    """

    layout: Layout = "gguf"

    def __init__(self, path: Path | str) -> None:
        self._library = _gguf_library()
        self._parts = [_Part.open(part, self._library) for part in part_paths(Path(path))]
        self.path, self.fields = self._parts[0].path, self._parts[0].fields
        self._home = _homes(self._parts)

    @property
    def description(self) -> str:
        """What the file holds, as in "GGUF, dequantized (linears Q4_1, embedding Q8_0)"."""
        parts = {
            "linears": self._kinds("blk."),
            "embedding": self._kinds(_EMBEDDING),
            "head": self._kinds(_HEAD),
        }
        return f"GGUF, dequantized ({', '.join(f'{part} {kinds}' for part, kinds in parts.items() if kinds)})"

    @property
    def name(self) -> str:
        """The file's name without its ending, and without the number of a part."""
        match = _PART.fullmatch(self.path.name)
        return match[1] if match else self.path.stem

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._home)

    def files(self) -> list[Path]:
        """Return the file, or all parts."""
        return [part.path for part in self._parts]

    def digests(self) -> Iterator[bytes]:
        """Yield a sha256 of each file."""
        return file_digests(self.files())

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._home[name].path if name in self._home else self.path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, rows first (llama.cpp writes it the other way round)."""
        return self._find(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's number type, such as "Q4_1"."""
        return self._find(name).type_name

    def load(self, name: str) -> F32:
        """Return a tensor as float32, dequantized, rows in the order of the file.

        The llama architecture's q and k rows are stored in llama.cpp's RoPE order; its adapter in
        :mod:`omniquant.models` restores the Hugging Face order.

        Raises
        ------
        UnsupportedCheckpointError
            If the `gguf` package cannot dequantize this number type.
        """
        return self._dequantize(name, self._stored(name)).reshape(self._find(name).shape)

    def load_rows(self, name: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Return rows of a matrix as float32 [len(rows), columns] without reading the others."""
        return self._dequantize(name, self._stored(name)[np.asarray(rows, np.int64)])

    def drop_pages(self) -> None:
        """Let the system take back what was read of the files; it is read again where it is needed."""
        for part in self._parts:
            drop_mapped(part.mapped)

    def _kinds(self, prefix: str) -> str:
        matrices = (self._find(n) for n in self._home if n.startswith(prefix) and len(self.shape(n)) > 1)
        return "/".join(sorted({matrix.type_name for matrix in matrices}))

    def _find(self, name: str) -> _Stored:
        try:
            return self._home[name].places[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: tensor {shown(name)} is missing") from None

    def _stored(self, name: str) -> npt.NDArray[np.uint8]:
        place = self._find(name)
        flat = np.frombuffer(self._home[name].mapped, np.uint8, place.rows * place.row_bytes, place.start)
        return flat.reshape(place.rows, place.row_bytes)

    def _dequantize(self, name: str, stored: npt.NDArray[np.uint8]) -> F32:
        kind = self._library.GGMLQuantizationType(self._find(name).type_code)
        try:
            with np.errstate(all="ignore"):  # a NaN scale is found by check_finite, not by a warning
                values = self._library.quants.dequantize(stored, kind)
        except Exception as error:  # the library's own errors are of every kind
            what = f"{self.file_of(name)}: tensor {shown(name)}"
            raise UnsupportedCheckpointError(
                f"{what}: cannot dequantize {kind.name}: {one_line(error)}"
            ) from error
        return np.ascontiguousarray(values, np.float32)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path}: cannot read: {one_line(error)}") from error
