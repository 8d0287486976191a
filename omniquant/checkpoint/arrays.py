"""Tensors that are in memory already: arrays by their Hugging Face names, never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.source import F32, Layout, widen
from omniquant.checkpoint.text import one_line, shown
from omniquant.errors import CheckpointError, ConfigError

# Kind and bytes of a number -> its name in safetensors. NumPy has no bfloat16: uint16 is its bits.
_TYPES = {("f", 4): "F32", ("f", 2): "F16", ("u", 2): "BF16"}
_TYPE_NAME = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class ArraySource:
    """Named arrays with the methods of a checkpoint.

    Parameters
    ----------
    tensors
        NumPy arrays, or whatever speaks DLPack or the array interface: float32, float16, bfloat16 (of
        ml_dtypes, or its bits as uint16).
    where
        What they are called in messages.

    Raises
    ------
    ConfigError
        If something is no array NumPy can look at without copying; names it.
    """

    layout: Layout = "safetensors"

    def __init__(self, tensors: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._tensors = {name: _view(values, f"{where}: {shown(name)}") for name, values in tensors.items()}

    @property
    def description(self) -> str:
        """The number types, as in "arrays float32"."""
        kinds = sorted({self.dtype(name) for name in self._tensors})
        return f"arrays {'/'.join(_TYPE_NAME.get(kind, kind) for kind in kinds)}"

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self._tensors)

    def files(self) -> list[Path]:
        """Return no file."""
        return []

    def digests(self) -> Iterator[bytes]:
        """Yield a sha256 of each array."""
        for name in self.names():
            flat = np.ascontiguousarray(self._tensors[name]).reshape(-1)
            yield hashlib.sha256(flat.view(np.uint8).data).digest()

    def file_of(self, name: str) -> Path:
        """Return what the arrays are called."""
        return Path(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, rows first."""
        return self._find(name).shape

    def dtype(self, name: str) -> str:
        """Return a tensor's number type: "F32", "F16", "BF16", or NumPy's name of another one."""
        found = self._find(name).dtype
        return _TYPES.get((found.kind, found.itemsize), str(found))

    def load(self, name: str) -> F32:
        """Return a tensor as float32: a read-only view when it is stored so, else a widened copy.

        Raises
        ------
        CheckpointError
            If it is missing or anything but float32, float16 or bfloat16.
        """
        return self._widened(name, self._find(name))

    def load_rows(self, name: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Return rows of a matrix as float32 [len(rows), ...]."""
        return self._widened(name, self._find(name)[np.asarray(rows, np.int64)])

    def drop_pages(self) -> None:
        """Do nothing: the arrays are the caller's."""

    def _widened(self, name: str, stored: npt.NDArray[Any]) -> F32:
        kind = self.dtype(name)
        if kind not in _TYPE_NAME:
            raise CheckpointError(
                f"{self._where}: tensor {shown(name)} is {kind}, float32, float16 and bfloat16 are read"
            )
        return widen(stored, bfloat16=kind == "BF16")

    def _find(self, name: str) -> npt.NDArray[Any]:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self._where}: tensor {shown(name)} is missing") from None


def _view(values: Any, where: str) -> npt.NDArray[Any]:
    """Return a read-only view; bfloat16 as the uint16 of its bits."""
    try:
        array = values if isinstance(values, np.ndarray) else _foreign(values)
        view = array.view(np.uint16) if array.dtype.name == "bfloat16" else array.view()
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
        raise ConfigError(f"{where}: NumPy cannot look at it without copying: {one_line(error)}") from error
    view.flags.writeable = False
    return view


def _foreign(values: Any) -> npt.NDArray[Any]:
    if hasattr(values, "__dlpack__"):
        return np.from_dlpack(values)
    if hasattr(values, "__array_interface__"):
        return np.asarray(values)
    raise TypeError(f"{type(values).__name__} is no array")
