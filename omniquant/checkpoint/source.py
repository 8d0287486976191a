"""What every checkpoint format offers to the models built on it."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError

F32 = npt.NDArray[np.float32]

Layout = Literal["safetensors", "gguf"]


class TensorSource(Protocol):
    """Named tensors in files, read on demand."""

    @property
    def layout(self) -> Layout:
        """Whose tensor names these are: the Hugging Face ones or those of llama.cpp."""

    @property
    def description(self) -> str:
        """One line for people: the format and its number types."""

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""

    def files(self) -> list[Path]:
        """Return the files the tensors are read from, sorted; none where they are in memory."""

    def digests(self) -> Iterator[bytes]:
        """Yield a sha256 of each file, or of each tensor where they are in memory."""

    def file_of(self, name: str) -> Path:
        """Return the file a tensor lies in."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, rows first."""

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's number type as the format spells it."""

    def load(self, name: str) -> F32:
        """Return a tensor as float32, C-contiguous; read-only when it is a view of the file."""

    def load_rows(self, name: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Return some rows of a matrix as float32 without reading the others."""

    def drop_pages(self) -> None:
        """Let the system take back what was read of the files; it is read again where it is needed."""


def widen(stored: npt.NDArray[Any], *, bfloat16: bool) -> F32:
    """Return stored numbers as float32, C-contiguous; bfloat16 comes as the uint16 of its bits."""
    if bfloat16:
        # A bfloat16 is the upper half of a float32.
        bits = stored.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    # An aligned float32 stays a view; NumPy wants aligned memory for everything else.
    return np.require(stored.astype(np.float32, copy=False), requirements=["C", "A"])


def file_digests(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield a sha256 of each file's content; CheckpointError for one that cannot be read."""
    for path in paths:
        try:
            with path.open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read: {one_line(error)}") from error


def drop_mapped(mapped: mmap.mmap) -> None:
    """Give back the pages of a read-only mapping."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)
