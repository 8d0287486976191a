"""What every checkpoint format offers to the models built on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

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
        """Return the files the tensors are read from, sorted."""

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
