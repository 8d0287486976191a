"""Durable writes: a file is either the old one or the complete new one, also after a power cut.

Temporary file in the same directory, write, fsync, rename, fsync of the directory (the directory entry
is data of the directory, so the rename itself is only durable after that).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from omniquant.checkpoint.text import one_line
from omniquant.errors import CheckpointError

_HEADER_ALIGNMENT = 8
_TEMPORARY = re.compile(r"\.(?P<of>.+)\.\d+\.[0-9a-f]+\.tmp")


def temporary_of(name: str) -> str | None:
    """Return the name of the file whose temporary one this is, which a killed process left; None: of none."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else match["of"]


def _fsync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (FUSE, network) cannot sync a directory; that is not a failed write.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write_and_sync(temporary: Path, chunks: Iterable[bytes | memoryview]) -> None:
    # O_EXCL: never write through a file or link somebody else put there.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        _write_and_sync(temporary, chunks)
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C leaves no litter either
        with suppress(OSError):
            temporary.unlink()
        raise
    _fsync_directory(path.parent)


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    try:
        _replace(path, chunks)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError(f"{path}: cannot write: {one_line(error)}") from error


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file durably; on any error the old file, or none, is left as it was.

    Parameters
    ----------
    path
        The file to create or replace. Its directory must exist.
    data
        The whole content.

    Raises
    ------
    CheckpointError
        With the path and the system's reason (disk full, read-only, missing directory, I/O error).
    """
    _write(Path(path), [data])


def _canonical_header(header: bytes) -> bytes:
    # The library writes metadata in hash order, which differs from process to process: the same result
    # would have another sha256 each time. Tensors keep the library's order (by offset).
    entries = json.loads(header)
    metadata = entries.pop("__metadata__", None)
    ordered = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    ordered.update(sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0])))
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=True).encode()
    return text + b" " * (-len(text) % _HEADER_ALIGNMENT)


def atomic_save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[np.generic]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors durably; equal input gives equal bytes, whatever the order of the mappings.

    Parameters
    ----------
    path
        The file to create or replace. Its directory must exist.
    tensors
        Arrays of any shape, order and byte order.
    metadata
        Strings for the header.

    Raises
    ------
    CheckpointError
        If the file cannot be written, or a tensor's type cannot be stored.
    """
    target = Path(path)
    native = {
        name: np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
        for name, array in sorted(tensors.items())
    }
    try:
        blob = safetensors.numpy.save(native, None if metadata is None else dict(metadata))
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{target}: cannot be stored as safetensors: {one_line(error)}") from error
    size = int.from_bytes(blob[:8], "little")
    header = _canonical_header(blob[8 : 8 + size])
    _write(target, [len(header).to_bytes(8, "little"), header, memoryview(blob)[8 + size :]])
