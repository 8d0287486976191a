"""Checkpoints whose names differ from their family's.

Those saved without their head lack the first part, "h.0..." for "transformer.h.0...". GPT-NeoX's head is
"embed_out" in files and "lm_head" in a module of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.source import F32, Layout, TensorSource


class RenamedSource:
    """Tensors under other names than their files give them.

    Parameters
    ----------
    source : TensorSource
    stored : dict of str to str
        The names there by the names here; others stay as they are.
    """

    def __init__(self, source: TensorSource, stored: dict[str, str]) -> None:
        self._source, self._names = source, stored

    @property
    def layout(self) -> Layout:
        """Whose names these are."""
        return self._source.layout

    @property
    def description(self) -> str:
        """One line for people."""
        return self._source.description

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        here = {there: name for name, there in self._names.items()}
        return sorted(here.get(name, name) for name in self._source.names())

    def files(self) -> list[Path]:
        """Return the files the tensors are read from."""
        return self._source.files()

    def digests(self) -> Iterator[bytes]:
        """Yield a sha256 of each file, or of each tensor."""
        return self._source.digests()

    def file_of(self, name: str) -> Path:
        """Return the file a tensor lies in."""
        return self._source.file_of(self._stored(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._source.shape(self._stored(name))

    def dtype(self, name: str) -> str:
        """Return a tensor's number type."""
        return self._source.dtype(self._stored(name))

    def load(self, name: str) -> F32:
        """Return a tensor as float32."""
        return self._source.load(self._stored(name))

    def load_rows(self, name: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> F32:
        """Return some rows of a matrix as float32."""
        return self._source.load_rows(self._stored(name), rows)

    def drop_pages(self) -> None:
        """Let the system take back what was read."""
        self._source.drop_pages()

    def _stored(self, name: str) -> str:
        return self._names.get(name, name)


def with_names_of(source: TensorSource, embedding: str, heads: Sequence[str]) -> TensorSource:
    """Return a source by the names of a family.

    Parameters
    ----------
    source : TensorSource
    embedding : str
        The family's name of it, such as "transformer.wte.weight"; "wte.weight" is then the shorter one.
    heads : sequence of str
        The family's names of the head, which never have the first part.
    """
    if source.layout != "safetensors":
        return source
    names = set(source.names())
    usual = {head: f"lm_head.{head.rpartition('.')[2]}" for head in heads if head not in names}
    stored = {head: name for head, name in usual.items() if name in names}
    first, _, short = embedding.partition(".")
    if embedding not in names and short in names:
        stored |= {f"{first}.{name}": name for name in names.difference(heads, stored.values())}
    return RenamedSource(source, stored) if stored else source
