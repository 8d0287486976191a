"""Durable writes: complete or not at all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from omniquant.checkpoint import atomic_save_safetensors, atomic_write_bytes
from omniquant.errors import CheckpointError

OLD, NEW = b"old content", b"new content" * 1000


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, function: str, code: int, call: int = 1) -> Iterator[None]:
    """Make the n-th call of an os function fail with an errno."""
    original = getattr(os, function)
    count = 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        yield


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, OLD)
    atomic_write_bytes(str(path), NEW)
    assert path.read_bytes() == NEW
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "file", NEW)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_order_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file must be on disk before its name is, and the directory after the rename.
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def kind(descriptor: int) -> str:
        return "directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    def record_fsync(descriptor: int) -> None:
        steps.append(f"fsync {kind(descriptor)}")
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        assert source.read_bytes() == NEW
        assert source.parent == target.parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    atomic_write_bytes(tmp_path / "file", NEW)
    assert steps == ["fsync file", "rename", "fsync directory"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
@pytest.mark.parametrize("old", [OLD, None])
def test_failure_keeps_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, old: bytes | None
) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with failing(monkeypatch, function, code), pytest.raises(CheckpointError) as caught:
        atomic_write_bytes(path, NEW)
    assert str(caught.value) == f"{path}: cannot write: {os.strerror(code)}"
    assert [child.read_bytes() for child in tmp_path.iterdir()] == ([] if old is None else [old])


def test_failed_sync_of_the_directory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        failing(monkeypatch, "fsync", errno.EIO, call=2),
        pytest.raises(CheckpointError, match="Input/output"),
    ):
        atomic_write_bytes(tmp_path / "file", NEW)


def test_file_systems_that_cannot_sync_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch, "fsync", errno.EINVAL, call=2):
        atomic_write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


def test_interruption_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "file", NEW)
    assert list(tmp_path.iterdir()) == []


def test_missing_directory(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "file"
    with pytest.raises(CheckpointError, match="No such file or directory") as caught:
        atomic_write_bytes(path, NEW)
    assert str(path) in str(caught.value)


def test_target_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        atomic_write_bytes(tmp_path / "folder", NEW)
    assert [child.name for child in tmp_path.iterdir()] == ["folder"]


def test_nul_in_the_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="null byte"):
        atomic_write_bytes(tmp_path / "a\0b", NEW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            atomic_write_bytes(tmp_path / "file", NEW)
    finally:
        tmp_path.chmod(0o700)


def test_the_kernel_refuses_the_second_half(tmp_path: Path) -> None:
    # A real short write: the file size limit cuts the temporary file in the middle.
    path = tmp_path / "file"
    path.write_bytes(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            atomic_write_bytes(path, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [child.read_bytes() for child in tmp_path.iterdir()] == [OLD]


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(OLD)
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    atomic_write_bytes(tmp_path / "file", NEW)
    assert (tmp_path / "precious").read_bytes() == OLD
    assert (tmp_path / "file").read_bytes() == NEW


TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(12, dtype=np.int32)[::-2],
    "swapped": np.arange(3, dtype=">f8"),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "flag": np.array([True, False]),
}


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    atomic_save_safetensors(path, TENSORS, {"b": "2", "a": "1"})
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert loaded[name].shape == values.shape
        assert loaded[name].dtype == values.dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded[name], values)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"a": "1", "b": "2"}


def test_safetensors_without_metadata(tmp_path: Path) -> None:
    atomic_save_safetensors(tmp_path / "x.safetensors", {"a": np.ones(2, np.float32)})
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata() is None


def test_safetensors_bytes_do_not_depend_on_order_or_process(tmp_path: Path) -> None:
    # The library itself writes metadata in an order that differs from process to process.
    program = (
        "import sys, numpy as np\n"
        "from omniquant.checkpoint.atomic import atomic_save_safetensors\n"
        "names = [f'tensor{i}' for i in range(9)]\n"
        "names = names[::-1] if sys.argv[2] == '1' else names\n"
        "atomic_save_safetensors(sys.argv[1], {n: np.full(3, 5.0, np.float32) for n in names},"
        " {n: n.upper() for n in names})\n"
    )
    contents = set()
    for run in range(3):
        path = tmp_path / f"{run}.safetensors"
        subprocess.run([sys.executable, "-c", program, str(path), str(run % 2)], check=True)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_safetensors_data_are_aligned(tmp_path: Path) -> None:
    atomic_save_safetensors(tmp_path / "x.safetensors", TENSORS, {"odd": "x"})
    assert int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("bad", [np.array(["text"]), np.array([object()]), np.array([1j], np.complex256)])
def test_types_that_cannot_be_stored(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="cannot be stored as safetensors"):
        atomic_save_safetensors(path, {"bad": bad})
    assert list(tmp_path.iterdir()) == []
