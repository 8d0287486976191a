"""Activations that travel through the blocks: in memory, or beyond a budget in files of a scratch directory.

A stream is hidden states [N, T, H], written a few windows at a time. In a file it is written by the file's
own calls, where a full disk is an error rather than a signal, and read through a mapping that cannot be
written to, so that its pages may be given back at any moment. The file loses its name as soon as it is open:
however the process ends, the system takes the space back.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from omniquant.checkpoint.text import one_line
from omniquant.errors import ScratchError
from omniquant.forward import F32
from omniquant.memory import shown_bytes

_NAME = re.compile(r"\.omniquant-\d+-[0-9a-f]+\.scratch")
_ITEM = 4  # bytes of a float32
_ZEROS = 1 << 24  # written together where the system cannot reserve space

Shape = tuple[int, int, int]


def is_scratch(name: str) -> bool:
    """Tell whether a file of this name is one of ours that lost its process before its name."""
    return _NAME.fullmatch(name) is not None


class Stream(Protocol):
    """Hidden states of all windows."""

    @property
    def array(self) -> F32:
        """The states [N, T, H], to be read."""

    @property
    def mapped(self) -> bool:
        """Whether `array` is a mapping of a file."""

    def write(self, part: slice, values: F32) -> None:
        """Replace some windows."""

    def drop(self, part: slice) -> None:
        """Give the pages of some windows back; they return when they are read."""


class _InMemory:
    """A stream that is an array."""

    mapped = False

    def __init__(self, shape: Shape) -> None:
        self.array: F32 = np.empty(shape, np.float32)

    def write(self, part: slice, values: F32) -> None:
        self.array[part] = values

    def drop(self, part: slice) -> None:
        pass


class _InFile:
    """A stream that is a file without a name."""

    mapped = True

    def __init__(self, shape: Shape, folder: Path) -> None:
        self._folder, self._window = folder, _ITEM * shape[1] * shape[2]
        self._path: Path | None = folder / f".omniquant-{os.getpid()}-{secrets.token_hex(4)}.scratch"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._file = os.open(self._path, flags, 0o600)
        try:
            with suppress(OSError):  # Windows: the name stays until the file is closed
                self._path.unlink()
                self._path = None
            _reserve(self._file, shape[0] * self._window)
            self._map = mmap.mmap(self._file, shape[0] * self._window, access=mmap.ACCESS_READ)
        except BaseException:
            self.close()
            raise
        self.array: F32 = np.frombuffer(self._map, np.float32).reshape(shape)

    def write(self, part: slice, values: F32) -> None:
        data = np.ascontiguousarray(values, np.float32).data.cast("B")
        try:
            os.lseek(self._file, part.start * self._window, os.SEEK_SET)
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise ScratchError(f"{self._folder}: cannot write activations: {one_line(error)}") from error

    def drop(self, part: slice) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            first = part.start * self._window // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, part.stop * self._window - first)

    def close(self) -> None:
        """Let go of the file; its space is free once nobody holds the array."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


def _reserve(file: int, size: int) -> None:
    """Take the space now, so that a full disk shows before anything is computed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = memoryview(bytes(min(size, _ZEROS)))
    left = size
    while left:
        left -= os.write(file, zeros[:left])


class StreamPool:
    """Streams of one shape, handed out and given back; a context manager that frees them.

    Parameters
    ----------
    shape : (int, int, int)
        Windows, tokens, hidden size.
    count : int
        Streams in use at a time.
    budget : int
        Bytes they may take in memory together; if that is not enough, all of them are files.
    folder : Path
        For the files; what killed runs left there is removed.
    say : callable
        Told where they are when that is not memory.

    Raises
    ------
    ScratchError
        If the folder does not take them: nothing has been computed by then.
    """

    def __init__(
        self,
        shape: Shape,
        count: int,
        budget: int,
        folder: Path,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        each = _ITEM * shape[0] * shape[1] * shape[2]
        self._shape = shape
        self._free: list[Stream] = []
        self._files: list[_InFile] = []
        if count * each > budget:
            self._open(count, folder, f"{count} x {shown_bytes(each)}")
            say(f"activations, {count} x {shown_bytes(each)}, in files in {folder}")

    def _open(self, count: int, folder: Path, what: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_stale(folder)
            for _ in range(count):
                self._files.append(_InFile(self._shape, folder))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self.close()
            raise ScratchError(
                f"{folder}: no place for activations of {what}: {one_line(error)}; "
                "name another scratch directory, or let them take more memory"
            ) from error
        self._free += self._files

    def take(self) -> Stream:
        """Return a stream nobody uses; what it holds is of no meaning."""
        return self._free.pop() if self._free or self._files else _InMemory(self._shape)

    def give_back(self, stream: Stream) -> None:
        """Take a stream back to hand it out again."""
        self._free.append(stream)

    def close(self) -> None:
        """Free every stream."""
        for file in self._files:
            file.close()
        self._files.clear()
        self._free.clear()

    def __enter__(self) -> StreamPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remove_stale(folder: Path) -> None:
    # A name outlives the opening of its file only if its process was killed in between, or, on Windows, is
    # still running; there an open file cannot be removed.
    for path in folder.iterdir():
        if is_scratch(path.name):
            with suppress(OSError):
                path.unlink()
