"""Activations beyond the budget: the same bits from files, given back always, and full disks said plainly."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_run import contents, small_folder, small_model, small_tokens
from synthetic import write_llama_folder

import omniquant
from omniquant import _core, streams
from omniquant.errors import ConfigError, ScratchError
from omniquant.memory import parse_bytes, shown_bytes
from omniquant.progress import Callback
from omniquant.streams import StreamPool, is_scratch

SHAPE = (5, 300, 16)
LEFT_BEHIND = ".omniquant-123-0a1b.scratch"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"), layers=3)


def run(model, output, tokens=None, **options):
    options = {"epochs": 2, "progress": False, "threads": 1, "method": "affinequant"} | options
    tokens = small_tokens(6, 24) if tokens is None else tokens
    return omniquant.calibrate(model, tokens, "W4A4", output=output, **options)


def held_by_this_process(folder):
    """Unnamed files of a folder that are open or mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if str(folder) in line and ".scratch" in line]


class Listener(Callback):
    def __init__(self):
        self.lines = []

    def on_message(self, line):
        self.lines.append(line)


@pytest.mark.parametrize("loss", ["mse", "token"])
def test_files_change_no_bit(model, tmp_path, loss):
    listener = Listener()
    run(model, tmp_path / "memory", loss=loss, aug_loss=True)
    run(
        model,
        tmp_path / "files",
        loss=loss,
        aug_loss=True,
        memory=0,
        scratch=tmp_path / "scratch",
        threads=2,
        callbacks=[listener],
    )
    assert contents(tmp_path / "memory") == contents(tmp_path / "files")
    assert listener.lines == [f"activations, 4 x 9.0 KiB, in files in {tmp_path / 'scratch'}"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_resumed_from_files_to_memory_and_back(model, tmp_path):
    run(model, tmp_path / "whole")

    class Stop(Callback):
        def on_block(self, report):
            if report.index == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "out", memory="1KB", callbacks=[Stop()])
    run(model, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    (tmp_path / "out" / "block_00001.safetensors").unlink()
    run(model, tmp_path / "out", resume=True, memory=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_budget_that_is_enough_opens_no_file(model, tmp_path, monkeypatch):
    need = 4 * 6 * 24 * 16 * 4  # streams, windows, tokens, hidden, bytes
    monkeypatch.setattr(streams, "_InFile", lambda *_: pytest.fail("a file although memory is enough"))
    run(model, tmp_path / "out", memory=need)
    with pytest.raises(pytest.fail.Exception):
        run(model, tmp_path / "less", memory=need - 1)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_nothing_is_left_after_an_error(model, tmp_path):
    class Stop(Callback):
        def on_step(self, event):
            assert held_by_this_process(tmp_path)
            assert [path.name for path in tmp_path.iterdir() if is_scratch(path.name)] == []
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(model, None, memory=0, scratch=tmp_path, callbacks=[Stop()])
    gc.collect()
    assert held_by_this_process(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_it_leaves_no_file(tmp_path):
    np.save(tmp_path / "windows.npy", small_tokens(6, 24))
    small_folder(tmp_path / "model")
    code = (
        "import os, signal, omniquant, numpy as np\n"
        "class Kill(omniquant.Callback):\n"
        "    def on_step(self, event): os.kill(os.getpid(), signal.SIGKILL)\n"
        "omniquant.calibrate(omniquant.load_model('model'), np.load('windows.npy'), 'W4A4', memory=0,\n"
        "                    scratch='scratch', progress=False, callbacks=[Kill()])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "scratch").iterdir()) == []


def test_files_of_a_killed_run_are_removed_and_others_are_not(model, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / LEFT_BEHIND).write_bytes(b"x")
    run(model, output)  # not in the way of a new result either
    assert not (output / LEFT_BEHIND).exists()
    (tmp_path / LEFT_BEHIND).write_bytes(b"x")
    (tmp_path / "omniquant-1-0.scratch").write_bytes(b"x")
    StreamPool(SHAPE, 1, 0, tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["omniquant-1-0.scratch", "out"]


def test_a_full_disk_is_found_before_anything_is_computed(model, tmp_path, monkeypatch):
    def full(file, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ScratchError) as caught:
        run(model, tmp_path / "out", memory=0, scratch=tmp_path / "scratch")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'scratch'}: no place for activations of 4 x 9.0 KiB")
    assert "No space left on device" in message
    assert "0 finished blocks are kept, go on with --resume" in message
    assert list((tmp_path / "scratch").iterdir()) == []
    run(model, tmp_path / "out", resume=True)


def test_a_disk_that_fills_up_keeps_the_finished_blocks(model, tmp_path, monkeypatch):
    class Fill(Callback):
        def on_block(self, report):
            def full(file, data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "write", full)

    with pytest.raises(ScratchError, match=r"cannot write .*No space.*1 finished blocks are kept"):
        run(model, tmp_path / "out", memory=0, callbacks=[Fill()])
    monkeypatch.undo()
    run(model, tmp_path / "out", resume=True)
    run(model, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_without_a_way_to_reserve_space_zeros_are_written(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(streams, "_ZEROS", 1000)
    with StreamPool(SHAPE, 1, 0, tmp_path) as pool:
        assert not pool.take().array.any()


@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["file", "memory"])
def test_a_stream_holds_what_is_written(tmp_path, budget):
    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    with StreamPool(SHAPE, 2, budget, tmp_path) as pool:
        one, other = pool.take(), pool.take()
        assert one.mapped == other.mapped == (budget == 0)
        for part in (slice(3, 5), slice(0, 3)):
            one.write(part, x[part])
            one.drop(part)
        other.write(slice(0, 5), x + 1)
        np.testing.assert_array_equal(one.array, x)
        np.testing.assert_array_equal(other.array, x + 1)
        pool.give_back(other)
        assert pool.take() is other


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="needs madvise")
def test_pages_leave_with_their_windows(tmp_path):
    def resident():
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8").split(".scratch", 1)[1]
        return int(lines.split("Rss:", 1)[1].split()[0]) << 10

    shape = (64, 64, 64)
    with StreamPool(shape, 1, 0, tmp_path) as pool:
        stream = pool.take()
        stream.write(slice(0, 64), np.ones(shape, np.float32))
        assert stream.array.sum() == 64**3
        assert resident() == 4 * 64**3
        stream.drop(slice(0, 32))
        assert resident() <= 4 * 64**3 // 2
        stream.drop(slice(32, 64))
        assert resident() == 0
        assert stream.array.sum() == 64**3


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="needs madvise")
def test_training_holds_a_few_windows_of_a_file(tmp_path):
    """After each step no more pages of all four streams are resident than a few windows have."""
    folder = write_llama_folder(tmp_path / "model", hidden=256, heads=4, kv_heads=2, ffn=32, vocab=64)
    model, seen = omniquant.load_model(folder), []

    class Watch(Callback):
        def on_step(self, event):
            text = Path("/proc/self/smaps").read_text(encoding="utf-8")
            parts = text.split(".scratch")[1:]
            seen.append(sum(int(part.split("Rss:", 1)[1].split()[0]) << 10 for part in parts))

    tokens = small_tokens(16, 128)
    run(model, None, tokens, epochs=1, memory=0, scratch=tmp_path, callbacks=[Watch()], aug_loss=True)
    window = 128 * 256 * 4  # more than the system maps around a page it has to bring
    assert len(seen) == 2 * 16
    assert max(seen) <= 4 * 16 * window // 3


def test_the_core_refuses_to_drop_pages_that_are_no_file(model, monkeypatch):
    real, tried = _core.calibrate_block, []

    def spy(*arguments, **rest):
        streams_of = [*arguments[2:6]]
        for index in range(4):
            changed = list(arguments)
            changed[2:6] = [stream.view() for stream in streams_of]
            for stream in changed[2:6]:
                stream.flags.writeable = False
            changed[2 + index] = streams_of[index].astype(np.float64)  # copied on the way in
            with pytest.raises(ValueError, match="no read-only view of a mapped file"):
                real(*changed, **(rest | {"mapped": True}))
            tried.append(index)
        return real(*arguments, **rest)

    monkeypatch.setattr(_core, "calibrate_block", spy)
    run(model, None, aug_loss=True)
    assert tried == [0, 1, 2, 3] * 3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("1.5 MiB", 3 << 19),
        ("500MB", 500_000_000),
        ("7", 7),
        (7, 7),
        ("2kb", 2000),
        (0, 0),
    ],
)
def test_sizes(text, size):
    assert parse_bytes("memory", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4XB", "-1", -1, True, 1.5, None, "4 4", "9" * 40])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="is no size"):
        parse_bytes("memory", text)


def test_sizes_for_people():
    assert [shown_bytes(size) for size in (0, 1023, 1536, 17 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "17.0 GiB",
    ]


def test_a_scratch_directory_that_cannot_be(model, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", "a\0b"):
        with pytest.raises(ScratchError, match="no place for activations"):
            run(model, None, memory=0, scratch=folder)
