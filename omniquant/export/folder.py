"""A model folder written as one: beside its place first, renamed when it is complete."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniquant.checkpoint.atomic import atomic_save_safetensors, atomic_write_bytes
from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError
from omniquant.runtime.matrix import exact_half

Tensors = Mapping[str, npt.NDArray[Any]]

SHARD_BYTES = 4 << 30


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it gets its name when the body ends and is removed when it fails.

    Raises
    ------
    CheckpointError
        If there is something of that name, or the folder cannot be made.
    """
    if path.exists() or path.is_symlink():
        raise CheckpointError(f"{path}: exists already, an export writes a new folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON."""
    atomic_write_bytes(path, json.dumps(values, indent=2, allow_nan=False).encode() + b"\n")


class Shards:
    """Safetensors of a model: one file, or several with an index where it is large.

    Parameters
    ----------
    folder : Path
    limit : int
        Bytes a file at most, if its tensors are smaller.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = limit
        self._pending: dict[str, npt.NDArray[Any]] = {}
        self._files: list[tuple[Path, list[str]]] = []
        self._total = 0

    def add(self, tensors: Tensors) -> None:
        """Take tensors; what is full is written."""
        for name, values in tensors.items():
            if self._pending and self._bytes() + values.nbytes > self._limit:
                self._flush()
            self._pending[name] = values

    def close(self) -> None:
        """Write the rest, name the files and, if there are several, write the index."""
        self._flush()
        count = len(self._files)
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._files, 1):
            single = count == 1
            final = "model.safetensors" if single else f"model-{number:05d}-of-{count:05d}.safetensors"
            os.replace(path, self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(self._folder / "model.safetensors.index.json", index)

    def _bytes(self) -> int:
        return sum(values.nbytes for values in self._pending.values())

    def _flush(self) -> None:
        path = self._folder / f"part-{len(self._files)}.safetensors"
        atomic_save_safetensors(path, self._pending, {"format": "pt"})
        self._total += self._bytes()
        self._files.append((path, list(self._pending)))
        self._pending = {}


def compact(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
    """Return float16 where that holds every value exactly, else the values as they are."""
    half = exact_half(values)
    return values if half is None else half
